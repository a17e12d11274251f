"""``python -m dit_accel_eval.speed``: a method against the fastest dense attention of this machine, paired, in one run.

Dense runs through SDPA and by plain matrix products; the faster one, over a few steps of the first clip,
is the baseline of the ratio. Everything is warmed up first; per clip dense and the method run in turn;
ratios are medians over clips.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_dispatch import attention_backend
from tqdm import tqdm

from dit_accel.cli.options import knobs_of, read_prompts, size_of
from dit_accel.compare import quality, where_time_went
from dit_accel.loading import fingerprint, load_pipeline
from dit_accel.records import append_record, read_records, to_json
from dit_accel.render import Clip, RenderSettings, check, render, versions
from dit_accel_eval.runs import estimate

DENSE_BACKENDS = {"SDPA": "native", "plain matmul": "_native_math"}
TRIAL_STEPS = 4


def dense_clip(pipe: DiffusionPipeline, settings: RenderSettings, backend: str) -> Clip:
    """A dense render on one of the two backends."""
    with attention_backend(DENSE_BACKENDS[backend]):
        return render(pipe, settings.as_dense())


def fastest_dense(pipe: DiffusionPipeline, settings: RenderSettings) -> dict[str, float]:
    """Denoise seconds of each dense backend for one short clip, fastest first."""
    seconds = {name: dense_clip(pipe, settings, name).seconds["denoise"] for name in DENSE_BACKENDS}
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


def one_clip(pipe: DiffusionPipeline, settings: RenderSettings, backend: str) -> dict[str, Any]:
    """Dense and the method for one prompt and seed."""
    dense, clip = dense_clip(pipe, settings, backend), render(pipe, settings)
    return {
        "prompt": settings.prompt,
        "seed": settings.seed,
        "dense_denoise": dense.seconds["denoise"],
        "denoise": clip.seconds["denoise"],
        "speedup": dense.seconds["denoise"] / clip.seconds["denoise"],
        "density": clip.attention.density,
        "seconds": clip.attention.seconds,
        "where": where_time_went(clip),
        "dense_where": where_time_went(dense),
        **quality(dense.frames, clip.frames, settings.prompt),
    }


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of the times, means with intervals of the quality, and how often the oracle saw the same."""
    return {
        "clips": len(records),
        "speedup_median": statistics.median(r["speedup"] for r in records),
        "speedup_lowest": min(r["speedup"] for r in records),
        "dense_denoise_median": statistics.median(r["dense_denoise"] for r in records),
        "denoise_median": statistics.median(r["denoise"] for r in records),
        "density_sparse_calls": estimate([r["density"]["sparse_calls"] for r in records]),
        "density_all_calls": estimate([r["density"]["all_calls"] for r in records]),
        "psnr": estimate([r["psnr"] for r in records]),
        "psnr_lowest": min(float(r["psnr"]) for r in records),
        "psnr_objects": estimate([r["psnr_objects"] for r in records]),
        "psnr_objects_lowest": min(float(r["psnr_objects"] or "nan") for r in records),
        "ssim": estimate([r["ssim"] for r in records]),
        "oracle_unchanged": sum(r["seen"] == r["seen_dense"] for r in records),
    }


@click.command()
@click.option("--prompts", "prompt_file", type=click.Path(path_type=Path), required=True)
@click.option("--clips", default=10, show_default=True, help="Clip i takes prompt i and seed i.")
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="show")
@click.option("--steps", default=25, show_default=True)
@click.option("--method", default="svg2", show_default=True)
@click.option("--set", "assignments", multiple=True, metavar="KNOB=VALUE")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def main(
    prompt_file: Path,
    clips: int,
    size: str,
    steps: int,
    method: str,
    assignments: tuple[str, ...],
    dtype: str,
    out: Path,
) -> None:
    """Append to OUT/speed.jsonl what is missing there, then write OUT/speed.json."""
    prompts, pixels = read_prompts(prompt_file), size_of(size, None, None, None)
    base = RenderSettings(
        prompts[0],
        method=method,
        knobs=knobs_of(assignments),
        height=pixels.height,
        width=pixels.width,
        frames=pixels.frames,
        steps=steps,
        dtype=dtype,
    )
    base, card = check(base)
    key = {
        "size": size,
        "steps": steps,
        "method": method,
        "knobs": dict(base.knobs),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "weights": fingerprint(card.source),
        "versions": versions(),
    }
    out.mkdir(parents=True, exist_ok=True)
    log = out / "speed.jsonl"
    records = [r for r in read_records(log) if r["key"] == key]
    pipe = load_pipeline(card, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    render(pipe, replace(base, steps=1))
    backends = fastest_dense(pipe, replace(base, steps=min(steps, TRIAL_STEPS)))
    for index in tqdm(range(clips), desc="speed"):
        case = replace(base, prompt=prompts[index % len(prompts)], seed=index)
        if any((r["prompt"], r["seed"]) == (case.prompt, case.seed) for r in records):
            continue
        records.append({"key": key, **one_clip(pipe, case, next(iter(backends)))})
        append_record(log, records[-1])
    shown = to_json(
        {"settings": key, "dense_seconds": backends, **summary(records[:clips])}, indent=2
    )
    (out / "speed.json").write_text(shown + "\n")
    click.echo(shown)


if __name__ == "__main__":
    main()
