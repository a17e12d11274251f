"""Compare profiles with dense attention on the same clips of the tiny world, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dit_accel.generation.loading import ModelCard, fingerprint
from dit_accel.generation.render import Clip
from dit_accel.generation.settings import RenderSettings, resolve_size
from dit_accel.generation.validation import validate
from dit_accel_assets.world import caption, sample_scenes
from dit_accel_eval.bench.run import machine
from dit_accel_eval.dense import DenseBackend
from dit_accel_eval.paired_runner import (
    PairedRunner,
    Record,
    RecordLog,
    check_measured,
    load_silently,
    measure_quality,
)
from dit_accel_eval.quality_metrics import installed_metrics
from dit_accel_eval.settings import Setting
from dit_accel_eval.statistics import mean_ci
from studies.onednn import decode_with_onednn

FIGURES = ("psnr", "psnr_objects", "ssim")
# Processor seconds of one thread change less than wall times, so dense ones serve the settings of a long clip.
RETIME_SECONDS = 1800.0


@dataclass(frozen=True)
class Entry(Setting):
    """One row of a table.

    Attributes:
        clips: Number of clips.
    """

    clips: int


def held_out_prompts(count: int, seed: int) -> list[str]:
    """Return captions that the model was not trained on, with one and two objects in turn."""
    objects = [1 + index % 2 for index in range(count)]
    return [caption(s) for s in sample_scenes(np.random.default_rng(seed), objects, held_out=True)]


def dense_requests(
    prompts: Sequence[str],
    size: str,
    steps: int,
    guidance_scale: float | None = None,
    dtype: str = "float32",
) -> list[RenderSettings]:
    """Return a dense request per prompt. Clip ``i`` has seed ``i``."""
    options: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "dtype": dtype}
    pixels = resolve_size(size, None, None, None)._asdict()
    base = RenderSettings("", method="dense", **pixels, **options)
    return [replace(base, prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]


def run_paired(
    entries: Sequence[Entry],
    size: str,
    steps: int,
    log: Path,
    guidance_scale: float | None = None,
    fastest: DenseBackend | None = None,
) -> tuple[dict[str, Any], list[Record]] | None:
    """Render what a log does not hold yet. A changed profile is rendered again.

    Args:
        entries: Rows of the table.
        size, steps, guidance_scale: Request of all clips.
        log: JSONL file to resume from and to append to.
        fastest: Dense attention that is timed; None times the pipeline's own.

    Returns:
        What all clips have in common, and the records of the entries; None while other processes have clips left.

    Raises:
        RunFailed: if a clip could not be measured. The next run tries it again.
    """
    prompts = held_out_prompts(max(entry.clips for entry in entries), seed=0)
    validated = [validate(clip) for clip in dense_requests(prompts, size, steps, guidance_scale)]
    clips, (request, card) = [clip for clip, _ in validated], validated[0]
    fastest = fastest or DenseBackend()
    common = {**describe_common(size, request, card), "dense": fastest.name}

    def describe(entry: Setting, case: RenderSettings) -> Record:
        profile = entry.profile.to_dict()
        names = {"label": entry.label, "profile": profile}
        return {"common": common, **names, "prompt": case.prompt, "seed": case.seed}

    runner = PairedRunner(
        lambda: decode_with_onednn(load_silently(card, request.load_options)),
        fastest,
        retime_seconds=RETIME_SECONDS,
    )
    records = runner.run(
        [(case, [e for e in entries if case.seed < e.clips]) for case in clips],
        RecordLog(log, ("common", "label", "profile", "seed")),
        describe=describe,
        measure=measure,
    )
    if records is None:
        return None
    check_measured(records)
    return common, records


def describe_common(size: str, request: RenderSettings, card: ModelCard) -> dict[str, Any]:
    """Return what all clips have in common: request, weights, machine, versions, and metrics that are installed."""
    return {
        "size": size,
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "weights": fingerprint(card.source),
        **machine(request.device),
        "metrics": installed_metrics(),
    }


def measure(_entry: Setting, case: RenderSettings, dense: Clip, clip: Clip) -> Record:
    """Return density, seconds, effects of levers and quality of a clip."""
    return {
        "density": clip.attention.density,
        "seconds": clip.seconds["denoise"],
        "dense_seconds": dense.seconds["denoise"],
        "cpu_seconds": clip.cpu_seconds,
        "dense_cpu_seconds": dense.cpu_seconds,
        "lever_effects": clip.attention.levers,
        "idle_levers": clip.attention.idle_levers,
        **measure_quality(dense, clip, case.prompt),
    }


def paired_table(records: Sequence[Mapping[str, Any]], base: str) -> list[dict[str, Any]]:
    """Return a row per label: the mean of each figure, and the gain of ``base`` over it on the clips of both."""
    clips = {(r["label"], r["prompt"], r["seed"]): r for r in records}
    rows = []
    for label in dict.fromkeys(r["label"] for r in records):
        labelled = [r for r in records if r["label"] == label]
        row: dict[str, Any] = {"label": label, "clips": len(labelled)}
        for name in ("sparse_calls", "all_calls"):
            row[f"density_{name}"] = mean_ci([r["density"][name] for r in labelled])
        pairs = [(clips.get((base, r["prompt"], r["seed"])), r) for r in labelled]
        for name in FIGURES:
            row[name] = mean_ci([r[name] for r in labelled])
            row[f"{base}_gain_{name}"] = mean_ci(
                [float(b[name]) - float(r[name]) for b, r in pairs if b and b[name] and r[name]]
            )
        for name in ("correct", "correct_dense"):
            row[name] = sum(bool(r.get(name)) for r in labelled)
        rows.append(row)
    return rows


def paired_gain(records: Sequence[Mapping[str, Any]], label: str, other: str) -> dict[str, Any]:
    """Return the mean difference in PSNR of two labels on the clips of both."""
    psnr = {(r["label"], r["prompt"], r["seed"]): float(r["psnr"]) for r in records}
    clips = [key[1:] for key in psnr if key[0] == label and (other, *key[1:]) in psnr]
    gains = [psnr[label, *clip] - psnr[other, *clip] for clip in clips]
    return {"of": label, "over": other, "psnr_gain": mean_ci(gains)}
