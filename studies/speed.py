"""``python -m studies.speed``: methods against the fastest dense attention of this machine, paired, in one run.

The fastest dense attention over a few steps of the first clip is the baseline of the ratio. Everything is
warmed up first; per clip dense and the methods run in turn; ratios are medians over clips.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from dit_accel.cli.options import prompts_option
from dit_accel.generation.loading import fingerprint, load_pipeline
from dit_accel.generation.placement import LoadOptions
from dit_accel.generation.render import render, versions
from dit_accel.generation.settings import RenderSettings, resolve_size
from dit_accel.generation.validation import validate
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import append_record, read_records, to_json
from dit_accel.io.prompts import read_prompts
from dit_accel_eval.comparison import quality_metrics, where_time_went
from dit_accel_eval.dense import NATIVE, DenseBackend, fastest_dense
from dit_accel_eval.paired import held_out_prompts
from dit_accel_eval.settings import Setting
from dit_accel_eval.statistics import estimate


def one_clip(
    pipe: DiffusionPipeline, settings: Mapping[str, RenderSettings], fastest: DenseBackend
) -> Iterator[dict[str, Any]]:
    """Dense, then each of the methods by label, for one prompt and seed."""
    first = next(iter(settings.values()))
    dense = fastest.render(pipe, first)
    reference = dense if fastest.name == NATIVE else render(pipe, first.as_dense())
    for label, wanted in settings.items():
        clip = render(pipe, wanted)
        yield {
            "setting": label,
            "prompt": wanted.prompt,
            "seed": wanted.seed,
            "dense_denoise": dense.seconds["denoise"],
            "denoise": clip.seconds["denoise"],
            "speedup": dense.seconds["denoise"] / clip.seconds["denoise"],
            "density": clip.attention.density,
            "seconds": clip.attention.seconds,
            "where": where_time_went(clip),
            "dense_where": where_time_went(dense),
            **quality_metrics(reference.frames, clip.frames, wanted.prompt),
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
@prompts_option()
@click.option("--clips", default=10, show_default=True, help="Clip i takes prompt i and seed i.")
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="show")
@click.option("--steps", default=25, show_default=True)
@click.option(
    "--methods",
    default="svg2",
    show_default=True,
    help="Settings separated by commas: METHOD[:KNOB=VALUE]...",
)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def main(
    prompt_source: str | None,
    clips: int,
    size: str,
    steps: int,
    methods: str,
    dtype: str,
    out: Path,
) -> None:
    """Append to OUT/speed.jsonl what is missing there, then write OUT/speed.json."""
    prompts = read_prompts(prompt_source) if prompt_source else held_out_prompts(clips, seed=0)
    pixels = resolve_size(size, None, None, None)
    base = RenderSettings(
        prompts[0],
        height=pixels.height,
        width=pixels.width,
        frames=pixels.frames,
        steps=steps,
        dtype=dtype,
    )
    wanted = {text: Setting.parse(text) for text in methods.split(",")}
    checked = {label: validate(setting.of(base))[0] for label, setting in wanted.items()}
    first, card = validate(base)
    key = {
        "guidance_scale": first.guidance_scale,
        "size": size,
        "steps": steps,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "weights": fingerprint(card.source),
        "versions": versions(),
    }
    out.mkdir(parents=True, exist_ok=True)
    log = out / "speed.jsonl"
    records = [r for r in read_records(log) if r["key"] == key and r["setting"] in checked]
    pipe = load_pipeline(card, LoadOptions(dtype=dtype))
    pipe.set_progress_bar_config(disable=True)
    one = next(iter(checked.values()))
    render(pipe, replace(one, steps=1))
    fastest = fastest_dense(pipe, one)
    for index in tqdm(range(clips), desc="speed"):
        prompt = prompts[index % len(prompts)]
        done = {r["setting"] for r in records if (r["prompt"], r["seed"]) == (prompt, index)}
        missing = {
            label: replace(s, prompt=prompt, seed=index)
            for label, s in checked.items()
            if label not in done
        }
        for record in one_clip(pipe, missing, fastest) if missing else ():
            records.append({"key": key, **record})
            append_record(log, records[-1])
    rows = {
        label: summary([r for r in records if r["setting"] == label and r["seed"] < clips])
        for label in checked
    }
    shown = to_json({"settings": key, "dense_seconds": fastest.seconds, "methods": rows}, indent=2)
    with atomic_write(out / "speed.json") as temporary:
        temporary.write_text(shown + "\n")
    click.echo(shown)


if __name__ == "__main__":
    main()
