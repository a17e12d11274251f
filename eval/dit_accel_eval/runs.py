"""Evaluation runs: every prompt and seed with dense attention, and with each setting against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dit_accel.core.progress import Progress
from dit_accel.errors import InvalidSettings
from dit_accel.generation.distributed import Process, this_process
from dit_accel.generation.forecast import predict_no_effect
from dit_accel.generation.loading import ModelCard, ingredients
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.tiny_world import warn_unreadable
from dit_accel.generation.validation import validate
from dit_accel.io.atomic import check_writable, sweep_temporaries
from dit_accel.io.jsonl import write_json
from dit_accel.io.video import VP9, require_encoder
from dit_accel_eval.bench.run import machine
from dit_accel_eval.dense import DenseBackend, fastest_dense
from dit_accel_eval.digest import digest
from dit_accel_eval.metrics.clip_pairs import NoBackbone
from dit_accel_eval.metrics.clip_score import load_clip
from dit_accel_eval.metrics.lpips import backbone_digest
from dit_accel_eval.paired_runner import (
    PATIENCE,
    PairedRunner,
    RecordLog,
    collect,
    load_silently,
)
from dit_accel_eval.quality_metrics import installed_metrics
from dit_accel_eval.recorder import Recorder
from dit_accel_eval.results import LOG, Plan, read_rows
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


def run_eval(evaluation: Evaluation, out: Path, progress: Progress | None = None) -> bool:
    """Render and measure what a folder does not hold yet.

    What was asked for goes to ``out/evaluation.json``, and records go to ``out/results.jsonl`` (of further processes:
    ``results.1.jsonl``, ...). Dense frames go to ``out/dense``, and videos for the page to ``out/clips``.

    Returns:
        True if all is measured, False while other processes have clips left.

    Raises:
        InvalidSettings: for an invalid setting, size or backbone, before anything is rendered.
    """
    cases = evaluation.cases()
    request, card, identity = check_evaluation(evaluation, out)
    out.mkdir(parents=True, exist_ok=True)
    process = this_process()
    for folder in (out, out / "clips", out / "dense"):
        sweep_temporaries(folder)
    progress = progress if progress and process.rank == 0 else Progress()
    load = cache(lambda: load_silently(card, process.load_options(request.load_options), progress))
    shared = asdict(replace(request, prompt="", seed=0))
    path = out / f"fastest-dense-{digest({**shared, **identity})}.json"
    with progress.part("timing dense attention", patience=PATIENCE):
        fastest = find_fastest(path, request, load, process)
    identity["dense"] = fastest.name
    runner = PairedRunner(load, fastest, out / "dense", identity, process, progress)
    recorder = Recorder(out, runner, evaluation.backbone)
    settings = recorder.distinct(evaluation.settings, cases[0])
    stability_file = f"stability-{runner.dense_name(cases[0])}.json"
    if process.rank == 0:
        clips = [(recorder.key(s, case), s.label) for case in cases for s in settings]
        about = machine(request.device)
        Plan(request, identity["weights"], fastest, about, clips, stability_file).save(out)
    log = RecordLog(out / LOG, ("key",))
    work = [(case, settings) for case in cases]
    runner.run(
        work,
        log,
        describe=recorder.describe,
        measure=recorder.measure,
        is_complete=recorder.is_complete,
    )
    recorder.write_missing_dense(list(log.read().values()), process.share(cases))
    with progress.part("measuring the stability of clusters", patience=PATIENCE):
        measure_stability(out / stability_file, runner, cases[0])
    # Other processes may have ended by now.
    measured = collect(work, log, recorder.describe) is not None
    return measured and (out / stability_file).is_file()


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
    check_writable(out / LOG)
    require_encoder(VP9)
    lpips = backbone_digest(backbone=evaluation.backbone)
    metrics = {"lpips": lpips, "clip": has_clip(), **installed_metrics()}
    identity = {**machine(request.device), **ingredients(card, request.load_options)}
    warn_unreadable(list(dict.fromkeys(case.prompt for case in cases)), request.model)
    return request, card, {**identity, "metrics": metrics}


def describe_cost(evaluation: Evaluation, out: Path) -> str:
    """Check an evaluation, and return the number of its renders and the settings that will have no effect."""
    request, card, _ = check_evaluation(evaluation, out)
    clips, settings = len(evaluation.cases()), len(evaluation.settings)
    lines = [
        f"{clips} clips, each with dense attention and with {settings} settings: {clips * (settings + 1)} renders"
    ]
    for setting in evaluation.settings:
        reason = predict_no_effect(request, card, setting.profile)
        if reason is not None:
            lines.append(f"{setting.label}: {reason}")
    return "\n".join(lines)


def find_fastest(
    path: Path, request: RenderSettings, load: Callable[[], Any], process: Process
) -> DenseBackend:
    """Return the fastest dense attention from a file. The first process writes it if it is missing or damaged."""
    if process.rank == 0:
        try:
            DenseBackend.load(path)
        except InvalidSettings:
            fastest_dense(load(), request).save(path)
    process.wait()
    return DenseBackend.load(path)


def measure_stability(path: Path, runner: PairedRunner, case: RenderSettings) -> None:
    """Write the `stability` of a clip to a file in the first process, unless the file holds it."""
    if runner.process.rank == 0 and read_rows(path) is None:
        write_json(path, stability(runner.pipe, validate(case)[0]))


def has_clip() -> bool:
    """Return True if CLIP's weights are on this machine."""
    try:
        load_clip()
    except NoBackbone:
        return False
    return True
