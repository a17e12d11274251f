"""Paired runs: every prompt and seed dense first, then each setting against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from dit_accel.errors import first_line
from dit_accel.generation.distributed import this_process
from dit_accel.generation.loading import ModelCard, ingredients, load_pipeline
from dit_accel.generation.placement import LoadOptions
from dit_accel.generation.render import render
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.io.atomic import atomic_write, check_writable
from dit_accel.io.jsonl import append_record, log_path, read_logs, to_json
from dit_accel_eval.bench.run import machine
from dit_accel_eval.comparison import quality_metrics
from dit_accel_eval.dense import NATIVE, DenseBackend, fastest_dense, finite
from dit_accel_eval.frames import difference, keep_frames, load_frames, write_webm
from dit_accel_eval.metrics.clip_score import load_clip
from dit_accel_eval.metrics.clips import NoBackbone
from dit_accel_eval.metrics.lpips import backbone_digest
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
    """A dense clip: its frames, the denoising seconds of the fastest dense attention in this process, and its
    file's name.
    """

    frames: np.ndarray
    seconds: float
    name: str


@dataclass
class Runner:
    """Renders what a folder does not hold yet.

    Attributes:
        out: ``results.jsonl`` and the folders ``dense`` and ``clips``.
        told: what besides its request decides a record.
        fastest: the dense attention that speed-ups are ratios to.
    """

    evaluation: Evaluation
    out: Path
    pipe: Any
    told: Mapping[str, Any]
    fastest: DenseBackend
    warm: set[str] = field(default_factory=set)

    def dense(self, case: RenderSettings) -> Dense:
        """The dense clip of a case: the pipeline's own frames, from the disk if they are there; the seconds are
        always of this process, so that a speed-up is a ratio within one.
        """
        settings, _ = validate(case)
        name = digest({**asdict(settings), **self.told})
        path = self.out / "dense" / f"{name}.safetensors"
        self._warm_up("dense", lambda c: self.fastest.render(self.pipe, validate(c)[0]), case)
        clip = self.fastest.render(self.pipe, settings)
        frames = load_frames(path)
        if frames is None:
            own = self.fastest.name == NATIVE
            frames = finite(clip.frames if own else render(self.pipe, settings).frames, case)
            keep_frames(path, frames)
        if not self._video(name).exists():
            write_webm(self._video(name), frames, case.fps)
        return Dense(frames, clip.seconds["denoise"], name)

    def record(self, setting: Setting, case: RenderSettings, dense: Dense) -> dict[str, Any]:
        """Render a case in some way, keep its videos, and measure it; what cannot be measured says why."""
        identity = {**setting.identity(case), **self.told}
        known = {
            "key": json.dumps(identity, sort_keys=True),
            "setting": setting.label,
            "prompt": case.prompt,
            "seed": case.seed,
            "frames": len(dense.frames),
        }
        try:
            self._warm_up(setting.label, lambda c: setting.run(self.pipe, c), case)
            clip = setting.run(self.pipe, case)
        except torch.OutOfMemoryError as error:
            return {**known, "failed": f"out of memory: {first_line(error)}"}
        attention = clip.attention
        return {
            **known,
            **self._measured(clip.frames, dense, case, digest(identity)),
            "speedup": dense.seconds / clip.seconds["denoise"],
            "seconds": clip.seconds["denoise"],
            "dense_seconds": dense.seconds,
            "density_sparse": attention.density["sparse_calls"],
            "density_all": attention.density["all_calls"],
            "layers": attention.layers,
            "calls": attention.calls,
            "fallbacks": attention.fallbacks,
            "remarks": attention.remarks,
            "attention_seconds": attention.seconds,
            "config": attention.config,
        }

    def _measured(
        self, frames: np.ndarray, dense: Dense, case: RenderSettings, name: str
    ) -> dict[str, Any]:
        """Figures and videos; frames that are not finite have none."""
        try:
            figures = quality_metrics(dense.frames, frames, case.prompt, self.evaluation.backbone)
        except ValueError as error:
            return {"failed": first_line(error)}
        videos = {"video": self._video(name), "difference_video": self._video(f"{name}-difference")}
        write_webm(videos["video"], frames, case.fps)
        write_webm(videos["difference_video"], difference(frames, dense.frames), case.fps)
        names = {key: f"clips/{path.name}" for key, path in videos.items()}
        return {**figures, **names, "dense_video": f"clips/{dense.name}.webm"}

    def _warm_up(self, label: str, run: Any, case: RenderSettings) -> None:
        """The first run of a kind in a process pays for what later ones find done."""
        if label not in self.warm:
            run(replace(case, steps=WARM_UP_STEPS))
            self.warm.add(label)

    def _video(self, name: str) -> Path:
        return self.out / "clips" / f"{name}.webm"


def run_eval(evaluation: Evaluation, out: Path) -> Results | None:
    """Append to ``out/results.jsonl`` (further processes: ``results.1.jsonl``, ...) what is not there yet for the very
    same request; dense clips are kept in ``out/dense``, videos for the page in ``out/clips``. None while
    other processes have not done their share of the clips.

    Raises:
        InvalidSettings: for a setting, size or backbone that does not work, before anything is rendered.
    """
    process = this_process()
    results = log_path(out / "results.jsonl", process.rank)
    cases = evaluation.cases()
    checks = [validate(case) for case in cases]
    for setting in evaluation.settings:
        setting.identity(cases[0])
    checked, card = checks[0]
    check_writable(results)
    told: dict[str, Any] = {**machine(checked.device), **ingredients(card, checked.load_options)}
    told["metrics"] = {"lpips": backbone_digest(backbone=evaluation.backbone), "clip": has_clip()}

    out.mkdir(parents=True, exist_ok=True)
    pipe = cache(lambda: loaded(card, process.load_options(checked.load_options)))
    fastest = kept_dense(out, checked, told, pipe)
    told["dense"] = fastest.name

    def key(setting: Setting, case: RenderSettings) -> str:
        return json.dumps({**setting.identity(case), **told}, sort_keys=True)

    settings = list({key(s, cases[0]): s for s in reversed(evaluation.settings)}.values())[::-1]
    records = all_records(out)
    done = {name for name, record in records.items() if complete(record, out)}
    todo = [c for c in process.share(cases) if any(key(s, c) not in done for s in settings)]
    watched = out / f"stability-{digest({**asdict(checked), **told})}.json"
    watches = process.rank == 0 and not watched.exists()
    if todo or watches:
        runner = Runner(evaluation, out, pipe(), told, fastest)
        for case in tqdm(todo, desc="eval", disable=None):
            dense = runner.dense(case)
            for setting in settings:
                if key(setting, case) not in done:
                    append_record(results, runner.record(setting, case, dense))
        if watches:
            with atomic_write(watched) as temporary:
                temporary.write_text(to_json(stability(pipe(), checked), indent=1) + "\n")
    records = all_records(out)
    if not watched.exists() or any(key(s, c) not in records for s in settings for c in cases):
        return None
    found = [{**records[key(s, c)], "setting": s.label} for s in settings for c in cases]
    return Results(checked, told["weights"], fastest, found, json.loads(watched.read_text()))


def kept_dense(
    out: Path, request: RenderSettings, told: Mapping[str, Any], pipe: Callable[[], Any]
) -> DenseBackend:
    """The dense attention that was the fastest when this folder was begun; the first process finds out."""
    process = this_process()
    common = asdict(replace(request, prompt="", seed=0))
    path = out / f"fastest-dense-{digest({**common, **told})}.json"
    if process.rank == 0 and not path.exists():
        fastest_dense(pipe(), request).keep(path)
    process.wait()
    return DenseBackend.kept(path)


def loaded(card: ModelCard, load_options: LoadOptions) -> Any:
    """A pipeline without its own progress bars."""
    pipe = load_pipeline(card, load_options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def complete(record: Mapping[str, Any], out: Path) -> bool:
    """Whether the videos that a record names are there."""
    names = [record[n] for n in ("video", "difference_video", "dense_video") if n in record]
    return all((out / name).is_file() for name in names)


def all_records(out: Path) -> dict[str, dict[str, Any]]:
    """What all processes have recorded, by key."""
    return {record["key"]: record for record in read_logs(out / "results.jsonl")}


@dataclass(frozen=True)
class Results:
    """What was measured: the request of the first clip, the weights, a record per setting and clip, and the
    agreement of clusters in the first clip (`stability`).
    """

    request: RenderSettings
    weights: str
    dense: DenseBackend
    records: list[dict[str, Any]]
    clusters: list[dict[str, Any]]


def has_clip() -> bool:
    """Whether CLIP's weights are here."""
    try:
        load_clip()
    except NoBackbone:
        return False
    return True


def unique(values: Sequence[T]) -> list[T]:
    """Without repetitions."""
    return list(dict.fromkeys(values))


def digest(told: Mapping[str, Any]) -> str:
    """A short name for a file."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
