"""Measure the bundled model: caption accuracy on held-out captions, and how well the VAE keeps clips."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from scipy import stats
from tqdm import tqdm

from dit_accel_assets import tiny_world_path
from dit_accel_assets.oracle import look
from dit_accel_assets.world import SIZES, caption, render, scenes


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
    help="The scheduler's stochastic_sampling: new noise in every step.  [default: as in the model]",
)
@click.option(
    "--shift", type=float, help="The scheduler's, towards noise.  [default: as in the model]"
)
@click.option("--batch", default=10)
@click.option("--seed", default=0)
@click.option("--device", default="cpu")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Append the figures to this JSONL file."
)
def caption_accuracy(
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
    """Share of generated clips that show exactly what the caption says, dense, float32."""
    pipe = WanPipeline.from_pretrained(model).to(device)
    pipe.set_progress_bar_config(disable=True)
    given = {"stochastic_sampling": stochastic, "shift": shift}
    changed = {name: value for name, value in given.items() if value is not None}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changed)
    height, width, frames = SIZES[size]
    for count in objects:
        asked = list(scenes(np.random.default_rng(seed), [count] * pairs, kept=True))
        wrong = []
        for start in tqdm(range(0, pairs, batch), desc=f"{count} object(s)"):
            chosen = asked[start : start + batch]
            torch.manual_seed(seed + start)  # for a stochastic scheduler
            noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chosen))]
            clips = pipe(
                [caption(s) for s in chosen],
                height=height,
                width=width,
                num_frames=frames,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=noise,
                output_type="np",
            ).frames
            verdicts = [look(clip) for clip in clips]
            wrong += [
                f"{caption(s)} -> {v}"
                for s, v in zip(chosen, verdicts, strict=True)
                if not v.agrees_with(s)
            ]
        right = pairs - len(wrong)
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
        click.echo("\n".join(wrong[:8]))
        if out:
            with out.open("a") as file:
                file.write(json.dumps(figures) + "\n")


@main.command("vae")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--clips", default=10, help="Per size.")
@click.option("--seed", default=1000)
@click.option("--device", default="cpu")
@torch.no_grad()
def reconstruction(model: Path, clips: int, seed: int, device: str) -> None:
    """PSNR of clips of held-out captions after encoding and decoding, in [0, 1], mean over frames."""
    vae = AutoencoderKLWan.from_pretrained(model / "vae", dtype=torch.float32).to(device)
    for size, shape in SIZES.items():
        values, lowest = [], []
        for index in range(clips):
            rng = np.random.default_rng(seed + index)
            scene = next(scenes(rng, [1 + index % 2], kept=True))
            clip = torch.from_numpy(render(scene, *shape))[None].permute(0, 4, 1, 2, 3).to(device)
            latent = vae.encode(clip * 2 - 1).latent_dist.mode()
            decoded = (vae.decode(latent).sample.clamp(-1, 1) + 1) / 2
            frames = -10 * torch.log10((decoded - clip).square().mean(dim=(0, 1, 3, 4)))
            values.append(float(frames.mean()))
            lowest.append(float(frames.min()))
        click.echo(
            json.dumps(
                {
                    "size": size,
                    "clips": clips,
                    "psnr": round(float(np.mean(values)), 2),
                    "worst_clip": round(min(values), 2),
                    "worst_frame": round(min(lowest), 2),
                }
            )
        )


if __name__ == "__main__":
    main()
