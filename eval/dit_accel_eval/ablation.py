"""``python -m dit_accel_eval.ablation``: svg2 against its controls at equal density, paired over clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from dit_accel import SVG2, Dense, Method, Profile, Schedule
from dit_accel.cli.options import size_of
from dit_accel.compare import quality
from dit_accel.loading import fingerprint, load_pipeline
from dit_accel.records import append_record, read_records, to_json
from dit_accel.render import Clip, RenderSettings, check, render_with
from dit_accel_assets.world import caption, scenes
from dit_accel_eval.controls import CONTROLS
from dit_accel_eval.runs import estimate

FIGURES = ("psnr", "psnr_objects", "ssim")


def held_out_prompts(count: int, seed: int) -> list[str]:
    """Captions kept from training, one object and two in turn."""
    objects = [1 + index % 2 for index in range(count)]
    return [caption(s) for s in scenes(np.random.default_rng(seed), objects, kept=True)]


def record_of(method: Method, settings: RenderSettings, dense: Clip, clip: Clip) -> dict[str, Any]:
    """What one clip of one method came to."""
    return {
        "method": method.name,
        "prompt": settings.prompt,
        "seed": settings.seed,
        "density": clip.attention.density["sparse_calls"],
        **quality(dense.frames, clip.frames, settings.prompt),
    }


def paired_table(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per method: mean and 95 % interval of each figure, and of svg2's gain over it on the same clips."""
    clips = {(r["method"], r["prompt"], r["seed"]): r for r in records}
    rows = []
    for method in dict.fromkeys(r["method"] for r in records):
        own = [r for r in records if r["method"] == method]
        base = [clips["svg2", r["prompt"], r["seed"]] for r in own]
        row: dict[str, Any] = {"method": method, "density": estimate([r["density"] for r in own])}
        for name in FIGURES:
            gains = [float(b[name]) - float(r[name]) for b, r in zip(base, own, strict=True)]
            row[name] = estimate([r[name] for r in own])
            row[f"svg2_gain_{name}"] = estimate(gains)
        rows.append(row)
    return rows


@click.command()
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="study")
@click.option("--clips", default=12)
@click.option("--steps", default=20)
@click.option("--top-p", default=SVG2.top_p)
@click.option("--min-key-share", default=SVG2.min_key_share)
@click.option("--dense-steps", default=0.2)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def main(
    size: str,
    clips: int,
    steps: int,
    top_p: float,
    min_key_share: float,
    dense_steps: float,
    out: Path,
) -> None:
    """Append to OUT/ablation.jsonl what is missing there, then write OUT/ablation.json."""
    pixels = size_of(size, None, None, None)
    base = SVG2(top_p=top_p, min_key_share=min_key_share)
    methods: list[Method] = [base, *(control(base=base) for control in CONTROLS)]
    schedule = Schedule(dense_steps=dense_steps, min_tokens=0)
    cases = [
        RenderSettings(
            prompt,
            method="dense",
            height=pixels.height,
            width=pixels.width,
            frames=pixels.frames,
            steps=steps,
            seed=seed,
        )
        for seed, prompt in enumerate(held_out_prompts(clips, seed=0))
    ]
    out.mkdir(parents=True, exist_ok=True)
    log = out / "ablation.jsonl"
    _, card = check(cases[0])
    key = {
        "size": size,
        "steps": steps,
        "svg2": asdict(base),
        "dense_steps": dense_steps,
        "weights": fingerprint(card.source),
    }
    kept = [r for r in read_records(log) if r["key"] == key]
    done = {(r["method"], r["prompt"], r["seed"]) for r in kept}
    pipe = load_pipeline(card)
    pipe.set_progress_bar_config(disable=True)
    for case in tqdm(cases, desc="ablation"):
        missing = [m for m in methods if (m.name, case.prompt, case.seed) not in done]
        if not missing:
            continue
        settings, _ = check(case)
        dense = render_with(pipe, settings, Profile(Dense()))
        for method in missing:
            clip = render_with(pipe, settings, Profile(method, schedule))
            kept.append({"key": key, **record_of(method, settings, dense, clip)})
            append_record(log, kept[-1])
    wanted = {(case.prompt, case.seed) for case in cases}
    rows = paired_table([r for r in kept if (r["prompt"], r["seed"]) in wanted])
    shown = to_json({"settings": key, "clips": clips, "rows": rows}, indent=2)
    (out / "ablation.json").write_text(shown + "\n")
    click.echo(shown)


if __name__ == "__main__":
    main()
