"""Measure the bundled model: accuracy on held-out captions, and reconstruction by the VAE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from scipy import stats
from tqdm import tqdm

from dit_accel_assets import tiny_world_path
from dit_accel_assets.oracle import look
from dit_accel_assets.world import SIZES, Scene, caption, render, sample_scenes

SHOWN_MISTAKES = 8


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Measure the tiny world."""


@main.command("captions")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--size", type=click.Choice(list(SIZES)), default="smoke")
@click.option("--pairs", default=50, help="(prompt, seed) pairs for each number of objects.")
@click.option("--steps", default=20)
@click.option("--guidance-scale", default=1.0)
@click.option("--objects", multiple=True, type=click.IntRange(1, 2), default=(1, 2))
@click.option(
    "--stochastic/--ode",
    default=None,
    help="Value of the scheduler's stochastic_sampling: new noise in every step.  "
    "[default: as in the model]",
)
@click.option(
    "--shift",
    type=float,
    help="Value of the scheduler's shift towards noise.  [default: as in the model]",
)
@click.option("--batch", default=10)
@click.option("--seed", default=0)
@click.option("--device", default="cpu")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Append the figures to this JSONL file."
)
def measure_captions(
    model: Path,
    size: str,
    pairs: int,
    steps: int,
    guidance_scale: float,
    objects: tuple[int, ...],
    stochastic: bool | None,
    shift: float | None,
    batch: int,
    seed: int,
    device: str,
    out: Path | None,
) -> None:
    """Measure how many generated clips show exactly what the caption says; dense, float32."""
    pipe = load_pipeline(model, device, stochastic=stochastic, shift=shift)
    height, width, frames = SIZES[size]
    call = {
        "height": height,
        "width": width,
        "num_frames": frames,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
    }
    for count in objects:
        scenes = list(sample_scenes(np.random.default_rng(seed), [count] * pairs, held_out=True))
        mistakes = []
        for start in tqdm(range(0, pairs, batch), desc=f"{count} object(s)"):
            mistakes += find_mistakes(pipe, call, scenes[start : start + batch], seed + start)
        right = pairs - len(mistakes)
        interval = stats.binomtest(right, pairs).proportion_ci(method="wilson")
        figures = {
            "size": size,
            "objects": count,
            "pairs": pairs,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "shift": pipe.scheduler.config.shift,
            "stochastic": pipe.scheduler.config.stochastic_sampling,
            "seed": seed,
            "accuracy": right / pairs,
            "interval": [round(interval.low, 3), round(interval.high, 3)],
        }
        click.echo(json.dumps(figures))
        click.echo("\n".join(mistakes[:SHOWN_MISTAKES]))
        if out:
            with out.open("a") as file:
                file.write(json.dumps(figures) + "\n")


def load_pipeline(
    model: Path, device: str, *, stochastic: bool | None, shift: float | None
) -> WanPipeline:
    """Load a model, and change its scheduler where a value is not None."""
    pipe = WanPipeline.from_pretrained(model).to(device)
    pipe.set_progress_bar_config(disable=True)
    requested = {"stochastic_sampling": stochastic, "shift": shift}
    changes = {name: value for name, value in requested.items() if value is not None}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)
    return pipe


def find_mistakes(
    pipe: WanPipeline, call: dict[str, Any], scenes: Sequence[Scene], seed: int
) -> list[str]:
    """Generate a clip per scene; return ``caption -> content`` for those that show something else."""
    # A stochastic scheduler takes its noise from PyTorch's own generator.
    torch.manual_seed(seed)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(scenes))]
    captions = [caption(scene) for scene in scenes]
    clips = pipe(captions, **call, generator=generators, output_type="np").frames
    verdicts = [look(clip) for clip in clips]
    return [
        f"{caption(scene)} -> {verdict}"
        for scene, verdict in zip(scenes, verdicts, strict=True)
        if not verdict.agrees_with(scene)
    ]


@main.command("vae")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--clips", default=10, help="Per size.")
@click.option("--seed", default=1000)
@click.option("--device", default="cpu")
@torch.no_grad()
def measure_reconstruction(model: Path, clips: int, seed: int, device: str) -> None:
    """Measure the PSNR of encoded and decoded clips of held-out captions, in [0, 1], mean over frames."""
    vae = AutoencoderKLWan.from_pretrained(model / "vae", dtype=torch.float32).to(device)
    for size, shape in SIZES.items():
        psnrs, worst_frames = [], []
        for index in range(clips):
            rng = np.random.default_rng(seed + index)
            scene = next(sample_scenes(rng, [1 + index % 2], held_out=True))
            clip = torch.from_numpy(render(scene, *shape))[None].permute(0, 4, 1, 2, 3).to(device)
            latent = vae.encode(clip * 2 - 1).latent_dist.mode()
            decoded = (vae.decode(latent).sample.clamp(-1, 1) + 1) / 2
            frames = -10 * torch.log10((decoded - clip).square().mean(dim=(0, 1, 3, 4)))
            psnrs.append(float(frames.mean()))
            worst_frames.append(float(frames.min()))
        click.echo(
            json.dumps(
                {
                    "size": size,
                    "clips": clips,
                    "psnr": round(float(np.mean(psnrs)), 2),
                    "worst_clip": round(min(psnrs), 2),
                    "worst_frame": round(min(worst_frames), 2),
                }
            )
        )


if __name__ == "__main__":
    main()
