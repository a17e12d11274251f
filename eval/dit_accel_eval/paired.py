"""Profiles against dense on the same clips of the tiny world: paired, resumable, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from tqdm import tqdm

from dit_accel import Dense, Profile
from dit_accel.generation.distributed import this_process
from dit_accel.generation.loading import fingerprint, load_pipeline
from dit_accel.generation.render import render_with, versions
from dit_accel.generation.settings import RenderSettings, resolve_size
from dit_accel.generation.validation import validate
from dit_accel.io.jsonl import append_record, log_path, read_logs, to_json
from dit_accel_assets.world import caption, sample_scenes
from dit_accel_eval.comparison import quality_metrics
from dit_accel_eval.statistics import estimate

FIGURES = ("psnr", "psnr_objects", "ssim")


@dataclass(frozen=True)
class Entry:
    """One row of a table: its label, how attention runs, and over how many clips."""

    label: str
    profile: Profile
    clips: int


def held_out_prompts(count: int, seed: int) -> list[str]:
    """Captions kept from training, one object and two in turn."""
    objects = [1 + index % 2 for index in range(count)]
    return [caption(s) for s in sample_scenes(np.random.default_rng(seed), objects, held_out=True)]


def clips_of(
    size: str, count: int, steps: int, guidance_scale: float | None = None
) -> list[RenderSettings]:
    """Dense requests for held-out captions, clip i with seed i."""
    pixels = resolve_size(size, None, None, None)
    return [
        RenderSettings(
            prompt,
            method="dense",
            height=pixels.height,
            width=pixels.width,
            frames=pixels.frames,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
        )
        for seed, prompt in enumerate(held_out_prompts(count, seed=0))
    ]


def run_paired(
    entries: Sequence[Entry],
    size: str,
    steps: int,
    log: Path,
    guidance_scale: float | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Render what ``log`` does not hold yet, of several processes each its share of the clips (with a log beside the
    first one's); returns what all clips have in common, and the records of these entries. A profile that
    changed is another measurement.
    """
    process = this_process()
    clips = clips_of(size, max(entry.clips for entry in entries), steps, guidance_scale)
    first, card = validate(clips[0])
    common = {
        "size": size,
        "steps": steps,
        "guidance_scale": first.guidance_scale,
        "weights": fingerprint(card.source),
        "versions": versions(),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    own = log_path(log, process.rank)
    pipe = load_pipeline(card)
    pipe.set_progress_bar_config(disable=True)
    there = recorded(log, common)
    for case in tqdm(process.share(clips), desc="clips"):
        wanted = [e for e in entries if case.seed < e.clips and key_of(e, case.seed) not in there]
        for record in one_clip(pipe, validate(case)[0], wanted):
            append_record(own, {"common": common, **record})
    process.wait()
    there = recorded(log, common)
    keys = [key_of(e, case.seed) for case in clips for e in entries if case.seed < e.clips]
    return common, [there[key] for key in keys]


def one_clip(
    pipe: DiffusionPipeline, settings: RenderSettings, entries: Sequence[Entry]
) -> Iterator[dict[str, Any]]:
    """Dense once, then each of the entries; nothing where there are none."""
    if not entries:
        return
    dense = render_with(pipe, settings, Profile(Dense()))
    for entry in entries:
        clip = render_with(pipe, settings, entry.profile)
        yield {
            "label": entry.label,
            "profile": entry.profile.to_dict(),
            "prompt": settings.prompt,
            "seed": settings.seed,
            "density": clip.attention.density,
            "seconds": clip.seconds["denoise"],
            "dense_seconds": dense.seconds["denoise"],
            **quality_metrics(dense.frames, clip.frames, settings.prompt),
        }


def recorded(log: Path, common: Mapping[str, Any]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What all processes have written of a table, by label, profile and seed."""
    found = [r for r in read_logs(log) if r.get("common") == common]
    return {(r["label"], to_json(r["profile"]), r["seed"]): r for r in found}


def key_of(entry: Entry, seed: int) -> tuple[str, str, int]:
    """As `recorded` has it."""
    return entry.label, to_json(entry.profile.to_dict()), seed


def paired_table(records: Sequence[Mapping[str, Any]], base: str) -> list[dict[str, Any]]:
    """Per label: mean and 95 % interval of each figure, and of the gain of ``base`` over it on the clips that
    both have.
    """
    clips = {(r["label"], r["prompt"], r["seed"]): r for r in records}
    rows = []
    for label in dict.fromkeys(r["label"] for r in records):
        own = [r for r in records if r["label"] == label]
        row: dict[str, Any] = {"label": label, "clips": len(own)}
        for name in ("sparse_calls", "all_calls"):
            row[f"density_{name}"] = estimate([r["density"][name] for r in own])
        pairs = [(clips.get((base, r["prompt"], r["seed"])), r) for r in own]
        for name in FIGURES:
            row[name] = estimate([r[name] for r in own])
            row[f"{base}_gain_{name}"] = estimate(
                [float(b[name]) - float(r[name]) for b, r in pairs if b and b[name] and r[name]]
            )
        for name in ("correct", "correct_dense"):
            row[name] = sum(bool(r.get(name)) for r in own)
        rows.append(row)
    return rows


def paired_gain(records: Sequence[Mapping[str, Any]], one: str, other: str) -> dict[str, Any]:
    """Mean difference in PSNR of two labels on the clips that both have, with its 95 % interval."""
    value = {(r["label"], r["prompt"], r["seed"]): float(r["psnr"]) for r in records}
    clips = [key[1:] for key in value if key[0] == one and (other, *key[1:]) in value]
    gains = [value[one, *clip] - value[other, *clip] for clip in clips]
    return {"of": one, "over": other, "psnr_gain": estimate(gains)}
