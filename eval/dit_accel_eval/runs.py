"""Evaluation runs: every prompt and seed with dense attention, and with each setting against it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dit_accel.generation.distributed import Process, this_process
from dit_accel.generation.loading import ModelCard, ingredients
from dit_accel.generation.render import Clip
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.io.atomic import check_writable
from dit_accel.io.jsonl import write_json
from dit_accel.io.video import VP9, require_encoder
from dit_accel_eval.bench.run import machine
from dit_accel_eval.dense import DenseBackend, fastest_dense
from dit_accel_eval.digest import digest
from dit_accel_eval.frames import difference, write_webm
from dit_accel_eval.metrics.clip_pairs import NoBackbone
from dit_accel_eval.metrics.clip_score import load_clip
from dit_accel_eval.metrics.lpips import backbone_digest
from dit_accel_eval.paired_runner import (
    PairedRunner,
    Record,
    RecordLog,
    load_silently,
    measure_quality,
)
from dit_accel_eval.quality_metrics import speedup
from dit_accel_eval.settings import Setting
from dit_accel_eval.stability import stability


@dataclass(frozen=True)
class Evaluation:
    """Clips (prompts x seeds) and the settings that are compared with dense attention on them.

    Attributes:
        base: Request that all clips share.
        backbone: Weights for LPIPS. None takes those in torch's cache.
    """

    base: RenderSettings
    prompts: Sequence[str]
    seeds: Sequence[int]
    settings: Sequence[Setting]
    backbone: Path | None = None

    def cases(self) -> list[RenderSettings]:
        """Return one dense request per clip. A clip that is named twice counts once."""
        clips = dict.fromkeys((prompt, seed) for prompt in self.prompts for seed in self.seeds)
        return [replace(self.base, prompt=p, seed=s).as_dense() for p, s in clips]


@dataclass(frozen=True)
class Results:
    """Records of every setting and clip, with the request and the cluster agreement of the first clip."""

    request: RenderSettings
    weights: str
    dense: DenseBackend
    records: list[Record]
    clusters: list[Record]


def run_eval(evaluation: Evaluation, out: Path) -> Results | None:
    """Render and measure what a folder does not hold yet.

    Records go to ``out/results.jsonl`` (of further processes: ``results.1.jsonl``, ...), dense frames to ``out/dense``,
    and videos for the page to ``out/clips``.

    Returns:
        All results, or None while other processes have clips left.

    Raises:
        InvalidSettings: for an invalid setting, size or backbone, before anything is rendered.
    """
    cases = evaluation.cases()
    request, card, identity = check_evaluation(evaluation, out)
    out.mkdir(parents=True, exist_ok=True)
    process = this_process()
    load = cache(lambda: load_silently(card, process.load_options(request.load_options)))
    shared = asdict(replace(request, prompt="", seed=0))
    path = out / f"fastest-dense-{digest({**shared, **identity})}.json"
    fastest = find_fastest(path, request, load, process)
    identity["dense"] = fastest.name
    runner = PairedRunner(load, fastest, out / "dense", identity, process)
    recorder = Recorder(out, runner, evaluation.backbone)
    settings = recorder.distinct(evaluation.settings, cases[0])
    records = runner.run(
        [(case, settings) for case in cases],
        RecordLog(out / "results.jsonl", ("key",)),
        describe=recorder.describe,
        measure=recorder.measure,
        is_complete=recorder.is_complete,
    )
    clusters = measure_stability(out, runner, cases[0])
    if records is None or clusters is None:
        return None
    labels = [setting.label for setting in settings] * len(cases)
    labelled = [{**r, "setting": label} for r, label in zip(records, labels, strict=True)]
    return Results(request, identity["weights"], fastest, labelled, clusters)


def check_evaluation(
    evaluation: Evaluation, out: Path
) -> tuple[RenderSettings, ModelCard, dict[str, Any]]:
    """Check an evaluation. Return its first request, the model's card, and what else decides the records.

    Raises:
        InvalidSettings: for an invalid setting, size or backbone.
    """
    cases = evaluation.cases()
    checks = [validate(case) for case in cases]
    request, card = checks[0]
    for setting in evaluation.settings:
        setting.identity(cases[0])
    check_writable(out / "results.jsonl")
    require_encoder(VP9)
    metrics = {"lpips": backbone_digest(backbone=evaluation.backbone), "clip": has_clip()}
    identity = {**machine(request.device), **ingredients(card, request.load_options)}
    return request, card, {**identity, "metrics": metrics}


def find_fastest(
    path: Path, request: RenderSettings, load: Callable[[], Any], process: Process
) -> DenseBackend:
    """Return the fastest dense attention from a file, which the first process writes if it is missing."""
    if process.rank == 0 and not path.exists():
        fastest_dense(load(), request).save(path)
    process.wait()
    return DenseBackend.load(path)


@dataclass(frozen=True)
class Recorder:
    """Turns the renders of an evaluation into records, and into videos in its folder ``out``."""

    out: Path
    runner: PairedRunner
    backbone: Path | None

    def key(self, setting: Setting, case: RenderSettings) -> str:
        """Return everything that decides a record as JSON."""
        return json.dumps({**setting.identity(case), **self.runner.identity}, sort_keys=True)

    def distinct(self, settings: Sequence[Setting], case: RenderSettings) -> list[Setting]:
        """Return the settings without those that render the same as an earlier one."""
        by_key: dict[str, Setting] = {}
        for setting in settings:
            by_key.setdefault(self.key(setting, case), setting)
        return list(by_key.values())

    def describe(self, setting: Setting, case: RenderSettings) -> Record:
        """Return the first fields of a record."""
        return {
            "key": self.key(setting, case),
            "setting": setting.label,
            "prompt": case.prompt,
            "seed": case.seed,
        }

    def measure(self, setting: Setting, case: RenderSettings, dense: Clip, clip: Clip) -> Record:
        """Return the figures of a record, and write its videos if its frames are finite."""
        figures = measure_quality(dense, clip, case.prompt, self.backbone)
        if "failed" not in figures:
            figures |= self._write_videos(setting, case, dense.frames, clip.frames)
        attention = clip.attention
        return {
            **figures,
            "speedup": speedup(dense, clip),
            "seconds": clip.seconds["denoise"],
            "dense_seconds": dense.seconds["denoise"],
            "density_sparse": attention.density["sparse_calls"],
            "density_all": attention.density["all_calls"],
            "layers": attention.layers,
            "calls": attention.calls,
            "fallbacks": attention.fallbacks,
            "remarks": attention.remarks,
            "attention_seconds": attention.seconds,
            "config": attention.config,
        }

    def is_complete(self, record: Record) -> bool:
        """Return True if the videos that a record names exist."""
        fields = ("video", "difference_video", "dense_video")
        return all((self.out / record[name]).is_file() for name in fields if name in record)

    def _write_videos(
        self, setting: Setting, case: RenderSettings, dense: np.ndarray, other: np.ndarray
    ) -> dict[str, str]:
        """Write a clip, its difference from dense, and, the first time, the dense clip. Return their names."""
        name = digest(json.loads(self.key(setting, case)))
        videos = {
            "video": f"clips/{name}.webm",
            "difference_video": f"clips/{name}-difference.webm",
            "dense_video": f"clips/{self.runner.dense_name(case)}.webm",
        }
        write_webm(self.out / videos["video"], other, case.fps)
        write_webm(self.out / videos["difference_video"], difference(other, dense), case.fps)
        if not (self.out / videos["dense_video"]).exists():
            write_webm(self.out / videos["dense_video"], dense, case.fps)
        return videos


def measure_stability(out: Path, runner: PairedRunner, case: RenderSettings) -> list[Record] | None:
    """Return `stability` of a clip from a file, which the first process writes; None without the file."""
    path = out / f"stability-{runner.dense_name(case)}.json"
    if runner.process.rank == 0 and not path.exists():
        write_json(path, stability(runner.pipe, validate(case)[0]))
    rows: list[Record] | None = json.loads(path.read_text()) if path.exists() else None
    return rows


def has_clip() -> bool:
    """Return True if CLIP's weights are on this machine."""
    try:
        load_clip()
    except NoBackbone:
        return False
    return True
