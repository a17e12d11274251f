"""Paired runs: every prompt and seed dense first, then each setting against it."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from dit_accel.compare import quality
from dit_accel.files import check_writable, written_whole
from dit_accel.loading import fingerprint, load_pipeline
from dit_accel.records import append_record, read_records, to_json
from dit_accel.render import RenderSettings, check, render, versions
from dit_accel_eval.frames import difference, keep_frames, kept, load_frames, write_webm
from dit_accel_eval.settings import Setting
from dit_accel_eval.stability import stability

T = TypeVar("T")
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Evaluation:
    """What is compared: clips (prompts x seeds), and the settings against dense.

    Attributes:
        base: what all clips have in common.
        backbone: of LPIPS; None: torch's cache.
    """

    base: RenderSettings
    prompts: Sequence[str]
    seeds: Sequence[int]
    settings: Sequence[Setting]
    backbone: Path | None = None

    def cases(self) -> list[RenderSettings]:
        """One dense request per clip; the same clip twice is not two independent clips."""
        pairs = [(p, s) for p in unique(self.prompts) for s in unique(self.seeds)]
        return [replace(self.base, prompt=p, seed=s).as_dense() for p, s in pairs]


@dataclass(frozen=True)
class Dense:
    """A dense clip: its frames as kept, denoising seconds, which process made it, and its file's name."""

    frames: np.ndarray
    seconds: float
    process: str
    name: str


@dataclass
class Runner:
    """Renders what a folder does not hold yet.

    Attributes:
        out: ``results.jsonl`` and the folders ``dense`` and ``clips``.
        process: name of this process: a speed-up is a ratio within one, where records say so.
    """

    evaluation: Evaluation
    out: Path
    pipe: Any
    model: str
    process: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    warm: set[str] = field(default_factory=set)

    def dense(self, case: RenderSettings) -> Dense:
        """The dense clip of a case, from the disk or rendered now."""
        name = digest({**asdict(check(case)[0]), **same(self.model)})
        path = self.out / "dense" / f"{name}.safetensors"
        found = load_frames(path)
        if found is None:
            self._warm_up("dense", lambda c: render(self.pipe, check(c)[0]), case)
            clip = render(self.pipe, check(case)[0])
            about: dict[str, Any] = {"seconds": clip.seconds["denoise"], "process": self.process}
            keep_frames(path, clip.frames, about)
            write_webm(self._video(name), clip.frames, case.fps)
            found = kept(clip.frames), about
        return Dense(found[0], found[1]["seconds"], found[1]["process"], name)

    def record(self, setting: Setting, case: RenderSettings, dense: Dense) -> dict[str, Any]:
        """Render a case in some way, keep its videos, and measure it."""
        self._warm_up(setting.label, lambda c: setting.run(self.pipe, c), case)
        clip = setting.run(self.pipe, case)
        frames, name = kept(clip.frames), digest({**setting.identity(case), **same(self.model)})
        write_webm(self._video(name), frames, case.fps)
        write_webm(self._video(f"{name}-difference"), difference(frames, dense.frames), case.fps)
        attention = clip.attention
        return {
            "key": key_of(case, setting, self.model),
            "setting": setting.label,
            "prompt": case.prompt,
            "seed": case.seed,
            **quality(dense.frames, frames, case.prompt, self.evaluation.backbone),
            "speedup": dense.seconds / clip.seconds["denoise"],
            "seconds": clip.seconds["denoise"],
            "dense_seconds": dense.seconds,
            "timed_in_one_process": dense.process == self.process,
            "density_sparse": attention.density["sparse_calls"],
            "density_all": attention.density["all_calls"],
            "layers": attention.layers,
            "calls": attention.calls,
            "fallbacks": attention.fallbacks,
            "remarks": attention.remarks,
            "attention_seconds": attention.seconds,
            "video": f"clips/{name}.webm",
            "dense_video": f"clips/{dense.name}.webm",
            "difference_video": f"clips/{name}-difference.webm",
        }

    def _warm_up(self, label: str, run: Any, case: RenderSettings) -> None:
        """The first run of a kind in a process pays for what later ones find done."""
        if label not in self.warm:
            run(replace(case, steps=WARM_UP_STEPS))
            self.warm.add(label)

    def _video(self, name: str) -> Path:
        return self.out / "clips" / f"{name}.webm"


def run_eval(evaluation: Evaluation, out: Path) -> Results:
    """Append to ``out/results.jsonl`` what it does not hold yet for the very same request; dense clips are
    kept in ``out/dense``, videos for the page in ``out/clips``.
    """
    results = out / "results.jsonl"
    cases, settings = evaluation.cases(), unique(evaluation.settings)
    for setting in settings:
        check(setting.of(cases[0]))
    checked, card = check(cases[0])
    check_writable(results)
    out.mkdir(parents=True, exist_ok=True)
    model = fingerprint(card.source)
    records = {record["key"]: record for record in read_records(results)}
    todo = [c for c in cases if any(key_of(c, s, model) not in records for s in settings)]
    watched = out / f"stability-{digest({**asdict(checked), **same(model)})}.json"
    if todo or not watched.exists():
        pipe = load_pipeline(card, device=checked.device, dtype=checked.dtype)
        pipe.set_progress_bar_config(disable=True)
        runner = Runner(evaluation, out, pipe, model)
        for case in tqdm(todo, desc="eval", disable=None):
            dense = runner.dense(case)
            for setting in settings:
                key = key_of(case, setting, model)
                if key not in records:
                    records[key] = runner.record(setting, case, dense)
                    append_record(results, records[key])
        with written_whole(watched) as temporary:
            temporary.write_text(to_json(stability(pipe, checked), indent=1) + "\n")
    return Results(
        checked,
        [records[key_of(c, s, model)] for s in settings for c in cases],
        json.loads(watched.read_text()),
    )


@dataclass(frozen=True)
class Results:
    """What was measured: the request of the first clip, a record per setting and clip, and the agreement of
    clusters in the first clip (`stability`).
    """

    request: RenderSettings
    records: list[dict[str, Any]]
    clusters: list[dict[str, Any]]


def unique(values: Sequence[T]) -> list[T]:
    """Without repetitions."""
    return list(dict.fromkeys(values))


def key_of(case: RenderSettings, setting: Setting, model: str) -> str:
    """What makes a measurement the same measurement: settings, weights and versions."""
    return json.dumps({**setting.identity(case), **same(model)}, sort_keys=True)


def same(model: str) -> dict[str, Any]:
    """What besides its request decides a clip."""
    return {"weights": model, "versions": versions()}


def digest(told: Mapping[str, Any]) -> str:
    """A short name for a file."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
