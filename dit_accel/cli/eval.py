"""``dit-accel eval``: quality against speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dit_accel.cli.options import (
    backbone_option,
    guidance_options,
    model_options,
    read_prompts,
    whole_numbers,
)


@click.command("eval")
@click.option(
    "--prompts",
    "prompt_file",
    type=click.Path(path_type=Path),
    required=True,
    help="One prompt per line.",
)
@click.option(
    "--methods",
    required=True,
    help="Settings separated by commas: METHOD[:KNOB=VALUE]..., for example svg2,svg2:top_p=0.8",
)
@click.option("--seeds", default="0", show_default=True, help="Separated by commas.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for results.jsonl and summary.csv.",
)
@backbone_option
@model_options
@guidance_options
def command(
    prompt_file: Path,
    methods: str,
    seeds: str,
    out: Path,
    lpips_backbone: Path | None,
    request: dict[str, Any],
) -> None:
    """Render every prompt and seed dense, then with each setting, and compare frame by frame."""
    from dit_accel.lazy import load
    from dit_accel.render import RenderSettings

    run_eval, parse = load("run_eval"), load("parse_setting")
    base = RenderSettings("", **request)
    settings = [parse(text) for text in methods.split(",")]
    prompts, numbers = read_prompts(prompt_file), whole_numbers("--seeds", seeds)
    summary = run_eval(base, prompts, numbers, settings, out, lpips_backbone)
    click.echo(summary.read_text().strip())
    click.echo(f"written: {summary}")
