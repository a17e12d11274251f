"""Time methods against the fastest dense attention of this machine, on the same clips."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from dit_accel.cli.options import prompts_option
from dit_accel.generation.identity import versions
from dit_accel.generation.loading import fingerprint
from dit_accel.generation.render import Clip
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.io.jsonl import to_json, write_json
from dit_accel.io.prompts import read_prompts
from dit_accel_eval.dense import fastest_dense
from dit_accel_eval.paired_runner import (
    PairedRunner,
    Record,
    RecordLog,
    check_measured,
    load_silently,
    measure_quality,
)
from dit_accel_eval.quality_metrics import speedup
from dit_accel_eval.settings import Setting
from dit_accel_eval.statistics import mean_ci
from studies.paired_table import dense_requests, held_out_prompts


def measure(_setting: Setting, case: RenderSettings, dense: Clip, clip: Clip) -> Record:
    """Return times, density and quality of a clip."""
    return {
        "dense_denoise": dense.seconds["denoise"],
        "denoise": clip.seconds["denoise"],
        "speedup": speedup(dense, clip),
        "density": clip.attention.density,
        "seconds": clip.attention.seconds,
        **measure_quality(dense, clip, case.prompt),
    }


def summarize(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return medians of the times, means of the quality, and how often the caption reader saw the same as in dense."""
    return {
        "clips": len(records),
        "speedup": mean_ci([r["speedup"] for r in records]),
        "speedup_median": statistics.median(r["speedup"] for r in records),
        "speedup_lowest": min(r["speedup"] for r in records),
        "dense_denoise_median": statistics.median(r["dense_denoise"] for r in records),
        "denoise_median": statistics.median(r["denoise"] for r in records),
        "seconds_median": {
            part: statistics.median(r["seconds"][part] for r in records)
            for part in records[0]["seconds"]
        },
        "density_sparse_calls": mean_ci([r["density"]["sparse_calls"] for r in records]),
        "density_all_calls": mean_ci([r["density"]["all_calls"] for r in records]),
        "psnr": mean_ci([r["psnr"] for r in records]),
        "psnr_lowest": min(float(r["psnr"]) for r in records),
        "psnr_objects": mean_ci([r["psnr_objects"] for r in records]),
        "psnr_objects_lowest": min(float(r["psnr_objects"] or "nan") for r in records),
        "ssim": mean_ci([r["ssim"] for r in records]),
        "oracle_unchanged": sum(r["seen"] == r["seen_dense"] for r in records),
    }


@click.command()
@prompts_option()
@click.option("--clips", default=10, show_default=True, help="Clip i has prompt i and seed i.")
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
    """Append missing records to OUT/speed.jsonl, then write OUT/speed.json. Speed-ups are medians over clips."""
    prompts = read_prompts(prompt_source) if prompt_source else held_out_prompts(clips, seed=0)
    in_turn = [prompts[index % len(prompts)] for index in range(clips)]
    cases = dense_requests(in_turn, size, steps, dtype=dtype)
    settings = [Setting.parse(text) for text in dict.fromkeys(methods.split(","))]
    request, card = validate(cases[0])
    key = {
        "guidance_scale": request.guidance_scale,
        "size": size,
        "steps": steps,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "weights": fingerprint(card.source),
        "versions": versions(),
    }

    def describe(setting: Setting, case: RenderSettings) -> Record:
        return {"key": key, "setting": setting.label, "prompt": case.prompt, "seed": case.seed}

    pipe = load_silently(card, request.load_options)
    fastest = fastest_dense(pipe, request)
    records = PairedRunner(lambda: pipe, fastest).run(
        [(case, settings) for case in cases],
        RecordLog(out / "speed.jsonl", ("key", "setting", "prompt", "seed")),
        describe=describe,
        measure=measure,
    )
    if records is None:
        return
    check_measured(records)
    rows = {s.label: summarize([r for r in records if r["setting"] == s.label]) for s in settings}
    table = {"settings": key, "dense_seconds": fastest.seconds, "methods": rows}
    write_json(out / "speed.json", table)
    click.echo(to_json(table, indent=2))


if __name__ == "__main__":
    main()
