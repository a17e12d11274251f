"""``python -m dit_accel_eval.ablation``: svg2 against its controls at equal density, paired over clips."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from dit_accel import SVG2, Method, Schedule
from dit_accel.cli.options import size_of
from dit_accel.compare import quality
from dit_accel.loading import load_pipeline
from dit_accel.render import Clip, RenderSettings, check, render_with
from dit_accel_assets.world import caption, held_out, sample_scene
from dit_accel_eval.controls import CONTROLS
from dit_accel_eval.runs import mean_and_interval, read_records

FIGURES = ("psnr", "psnr_objects", "ssim")


def held_out_prompts(count: int, seed: int) -> list[str]:
    """Captions kept from training, one object and two in turn."""
    rng, prompts = np.random.default_rng(seed), list[str]()
    while len(prompts) < count:
        text = caption(sample_scene(rng, 1 + len(prompts) % 2))
        if held_out(text):
            prompts.append(text)
    return prompts


def record_of(name: str, settings: RenderSettings, dense: Clip, clip: Clip) -> dict[str, object]:
    return {
        "method": name,
        "prompt": settings.prompt,
        "seed": settings.seed,
        "density": clip.attention.density["sparse_calls"],
        **quality(dense.frames, clip.frames, settings.prompt),
    }


def paired_table(records: list[dict[str, object]]) -> list[dict[str, object]]:
    """Per method: mean and 95 % interval of each figure, and of svg2's gain over it on the same clips."""
    clips = {(r["method"], r["prompt"], r["seed"]): r for r in records}
    rows = []
    for method in dict.fromkeys(r["method"] for r in records):
        own = [r for r in records if r["method"] == method]
        base = [clips["svg2", r["prompt"], r["seed"]] for r in own]
        row: dict[str, object] = {"method": method, "clips": len(own)}
        row["density"] = float(np.mean([float(str(r["density"])) for r in own]))
        for name in FIGURES:
            mine = [float(str(r[name])) for r in own]
            gain = [float(str(b[name])) - m for b, m in zip(base, mine, strict=True)]
            row[name] = mean_and_interval(mine)
            row[f"svg2_gain_{name}"] = mean_and_interval(gain)
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
    done = {(r["method"], r["prompt"], r["seed"]) for r in read_records(log)}
    _, card = check(cases[0])
    pipe = load_pipeline(card)
    pipe.set_progress_bar_config(disable=True)
    for case in tqdm(cases, desc="ablation"):
        missing = [m for m in methods if (m.name, case.prompt, case.seed) not in done]
        if not missing:
            continue
        settings, _ = check(case)
        dense = render_with(pipe, settings, methods[0], Schedule(dense_steps=1.0))
        for method in missing:
            clip = render_with(pipe, settings, method, schedule)
            with log.open("a") as file:
                file.write(json.dumps(record_of(method.name, settings, dense, clip)) + "\n")
    table = paired_table(read_records(log))
    (out / "ablation.json").write_text(json.dumps(table, indent=2) + "\n")
    click.echo(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
