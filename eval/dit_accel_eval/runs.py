"""Paired runs: every prompt and seed dense first, then each setting against it."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import stats
from tqdm import tqdm

from dit_accel.cli.options import attention_settings
from dit_accel.compare import quality, speedup
from dit_accel.errors import BadInput
from dit_accel.files import check_writable, written_whole
from dit_accel.loading import fingerprint, load_pipeline
from dit_accel.profile import SUFFIXES
from dit_accel.records import append_record, read_records
from dit_accel.render import RenderSettings, check, render, versions

T = TypeVar("T")

FIGURES = (
    "psnr",
    "ssim",
    "lpips",
    "flicker",
    "drift",
    "psnr_objects",
    "speedup",
    "density_sparse",
    "density_all",
)


@dataclass(frozen=True)
class Setting:
    """A way to run attention, as one column of an evaluation: its name, and what it sets in
    `RenderSettings`.
    """

    label: str
    changes: Mapping[str, Any] = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Setting:
        """``svg2:top_p=0.8:schedule.dense_steps=0:precision=int8``; a profile's file may stand for the
        method.

        Raises:
            BadInput: for a part without ``=``, or a file that is no profile.
        """
        name, *parts = text.split(":")
        for part in parts:
            if "=" not in part:
                raise BadInput(f"setting {text!r}: {part!r} is not KNOB=VALUE")
        knobs = dict(part.split("=", 1) for part in parts)
        given = {key: knobs.pop(key, None) for key in ("precision", "dense_precision", "guard")}
        path = Path(name) if Path(name).suffix in SUFFIXES else None
        method = None if path else name
        return cls(text, attention_settings(path, {"method": method, **given}, knobs))

    def of(self, case: RenderSettings) -> RenderSettings:
        """A clip's settings with this way to run attention."""
        return replace(case, **self.changes)


def run_eval(
    base: RenderSettings,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[Setting],
    out: Path,
    backbone: Path | None = None,
) -> Path:
    """Evaluate settings on prompts x seeds; append to ``out/results.jsonl`` and write
    ``out/summary.csv``.

    What ``results.jsonl`` already holds for the very same request is not run again.

    Returns:
        The path of the summary.
    """
    results, summary = out / "results.jsonl", out / "summary.csv"
    cases = [replace(base, prompt=p, seed=s) for p in unique(prompts) for s in unique(seeds)]
    settings = unique(settings)
    for setting in settings:
        check(setting.of(replace(base, prompt=prompts[0])))
    checked, card = check(replace(base, prompt=prompts[0]).as_dense())
    check_writable(results)
    out.mkdir(parents=True, exist_ok=True)
    model = fingerprint(card.source)
    records = read_records(results)
    done = {record["key"] for record in records}
    todo = [c for c in cases if any(key_of(c, s, model) not in done for s in settings)]
    pipe = load_pipeline(card, device=checked.device, dtype=checked.dtype) if todo else None
    for case in tqdm(todo, desc="eval", disable=None):
        assert pipe is not None
        pipe.set_progress_bar_config(disable=True)
        missing = [s for s in settings if key_of(case, s, model) not in done]
        for setting, record in zip(missing, run_case(pipe, case, missing, backbone), strict=True):
            record = {"key": key_of(case, setting, model), **record}
            append_record(results, record)
            records.append(record)
    wanted = {key_of(c, s, model) for c in cases for s in settings}
    with written_whole(summary) as temporary:
        write_summary(temporary, [r for r in records if r["key"] in wanted])
    return summary


def unique(values: Sequence[T]) -> list[T]:
    """Without repetitions: the same clip twice is not two independent clips."""
    return list(dict.fromkeys(values))


def run_case(
    pipe: Any, case: RenderSettings, settings: Sequence[Setting], backbone: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Dense once, then each setting against it; yields one record per setting."""
    request, _ = check(case.as_dense())
    dense = render(pipe, request)
    for setting in settings:
        clip = render(pipe, check(setting.of(case))[0])
        density = clip.attention.density
        yield {
            "setting": setting.label,
            "prompt": case.prompt,
            "seed": case.seed,
            **quality(dense.frames, clip.frames, case.prompt, backbone),
            "speedup": speedup(dense, clip),
            "density_sparse": density["sparse_calls"],
            "density_all": density["all_calls"],
            "seconds": clip.seconds,
            "dense_seconds": dense.seconds,
        }


def key_of(case: RenderSettings, setting: Setting, model: str) -> str:
    """What makes a measurement the same measurement: settings, weights and versions."""
    return json.dumps(
        {**asdict(setting.of(case)), "weights": model, "versions": versions()}, sort_keys=True
    )


class Estimate(NamedTuple):
    """Mean of n finite values and the half width of its 95 % interval (Student's t)."""

    mean: float
    half_width: float
    n: int


def estimate(values: Sequence[float | str | None]) -> Estimate:
    """Mean and interval of the finite values; what is None, NaN or infinite is left out, and n says so."""
    numbers = np.array([float(v) for v in values if v is not None])
    finite = numbers[np.isfinite(numbers)]
    n = len(finite)
    if n == 0:
        return Estimate(math.nan, math.nan, 0)
    if n == 1:
        return Estimate(float(finite[0]), math.nan, 1)
    width = stats.sem(finite) * stats.t.ppf(0.975, n - 1)
    return Estimate(float(finite.mean()), float(width), n)


def write_summary(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One line per setting: number of clips; mean, half width of the interval and n of each figure."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["setting"]].append(record)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = [c for f in FIGURES for c in (f, f"{f}_pm", f"{f}_n")]
        writer.writerow(["setting", "clips", *columns])
        for setting, rows in groups.items():
            cells = []
            for name in FIGURES:
                figure = estimate([row.get(name) for row in rows])
                cells += [f"{figure.mean:.4f}", f"{figure.half_width:.4f}", figure.n]
            writer.writerow([setting, len(rows), *cells])
