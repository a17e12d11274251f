"""Measure the peak memory of a render by method, each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click

from dit_accel.io.jsonl import write_json


def peak_mebibytes(method: str, frames: int) -> float:
    """Denoise two steps at 256 x 256 pixels on the CPU, and return the process's peak resident memory in MiB."""
    import torch

    from dit_accel import Schedule
    from dit_accel.generation.loading import load_pipeline, read_card

    pipe = load_pipeline(read_card("tiny-world"))
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_sparse_attention(method, schedule=Schedule(dense_steps=0, min_tokens=0))
    pipe(
        "a red circle moving left on a black background",
        height=256,
        width=256,
        num_frames=frames,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@click.command()
@click.option("--frames", default=101, show_default=True, help="101 frames are 6,656 tokens.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(frames: int, out: Path | None) -> None:
    """Compare dense attention and svg2. For scale, the output names the size of one head's scores in float32."""
    context = multiprocessing.get_context("spawn")
    tokens = ((frames - 1) // 4 + 1) * 16 * 16
    figures: dict[str, float] = {"tokens": tokens, "one_head_scores_mib": tokens**2 * 4 / 2**20}
    for method in ("dense", "svg2"):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peak = pool.submit(peak_mebibytes, method, frames).result()
        figures[f"{method}_peak_mib"] = round(peak, 1)
    click.echo(json.dumps(figures, indent=2))
    if out:
        write_json(out, figures)


if __name__ == "__main__":
    main()
