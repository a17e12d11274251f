"""Paired runs: every prompt and seed dense first, then each setting against it."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from dit_accel.compare import quality, speedup
from dit_accel.errors import BadInput
from dit_accel.loading import load_pipeline
from dit_accel.media import check_writable, written_whole
from dit_accel.render import RenderSettings, check, render

FIGURES = ("psnr", "ssim", "psnr_objects", "speedup", "density_sparse", "density_all")


@dataclass(frozen=True)
class Setting:
    """A method with its knobs, as one column of an evaluation."""

    method: str
    knobs: Mapping[str, Any]

    @property
    def label(self) -> str:
        return ":".join([self.method, *(f"{k}={v}" for k, v in self.knobs.items())])

    @classmethod
    def parse(cls, text: str) -> Setting:
        """``svg2:top_p=0.8:schedule.dense_steps=0`` as a setting.

        Raises:
            BadInput: for a part without ``=``.
        """
        method, *parts = text.split(":")
        for part in parts:
            if "=" not in part:
                raise BadInput(f"setting {text!r}: {part!r} is not KNOB=VALUE")
        return cls(method, dict(part.split("=", 1) for part in parts))


def run_eval(
    base: RenderSettings,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[Setting],
    out: Path,
) -> Path:
    """Evaluate settings on prompts x seeds; append to ``out/results.jsonl`` and write
    ``out/summary.csv``.

    What ``results.jsonl`` already holds for the very same request is not run again.

    Returns:
        The path of the summary.
    """
    results, summary = out / "results.jsonl", out / "summary.csv"
    cases = [replace(base, prompt=p, seed=s) for p in prompts for s in seeds]
    for setting in settings:
        check(replace(base, prompt=prompts[0], method=setting.method, knobs=setting.knobs))
    checked, card = check(replace(base, prompt=prompts[0], method="dense"))
    check_writable(results)
    records = read_records(results)
    done = {record["key"] for record in records}
    todo = [c for c in cases if any(key_of(c, s) not in done for s in settings)]
    pipe = load_pipeline(card, device=checked.device, dtype=checked.dtype) if todo else None
    for case in tqdm(todo, desc="eval", disable=None):
        assert pipe is not None
        pipe.set_progress_bar_config(disable=True)
        for record in run_case(pipe, case, [s for s in settings if key_of(case, s) not in done]):
            with results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            records.append(record)
    wanted = {key_of(c, s) for c in cases for s in settings}
    with written_whole(summary) as temporary:
        write_summary(temporary, [r for r in records if r["key"] in wanted])
    return summary


def run_case(
    pipe: Any, case: RenderSettings, settings: Sequence[Setting]
) -> Iterator[dict[str, Any]]:
    """Dense once, then each setting against it; yields one record per setting."""
    request, _ = check(replace(case, method="dense"))
    dense = render(pipe, request)
    for setting in settings:
        clip = render(pipe, replace(request, method=setting.method, knobs=setting.knobs))
        density = clip.attention.density
        yield {
            "key": key_of(case, setting),
            "setting": setting.label,
            "prompt": case.prompt,
            "seed": case.seed,
            **quality(dense.frames, clip.frames, case.prompt),
            "speedup": speedup(dense, clip),
            "density_sparse": density["sparse_calls"],
            "density_all": density["all_calls"],
            "seconds": clip.seconds,
            "dense_seconds": dense.seconds,
        }


def key_of(case: RenderSettings, setting: Setting) -> str:
    """What makes a measurement the same measurement."""
    return json.dumps(
        {**asdict(case), "method": setting.method, "knobs": dict(setting.knobs)}, sort_keys=True
    )


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a results file, without a last line that was cut off."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t); NaN width for fewer than two finite
    values.
    """
    finite = np.array([v for v in values if v is not None and np.isfinite(v)])
    if len(finite) == 0:
        return float("nan"), float("nan")
    if len(finite) < 2:
        return float(finite.mean()), float("nan")
    width = stats.sem(finite) * stats.t.ppf(0.975, len(finite) - 1)
    return float(finite.mean()), float(width)


def write_summary(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One line per setting: number of clips, and mean and interval of each figure."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["setting"]].append(record)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "clips", *(c for f in FIGURES for c in (f, f"{f}_pm"))])
        for setting, rows in groups.items():
            figures = [mean_and_interval([row.get(f) for row in rows]) for f in FIGURES]  # type: ignore[misc]
            writer.writerow([setting, len(rows), *(f"{v:.4f}" for pair in figures for v in pair)])
