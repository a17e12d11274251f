"""``dit-accel eval``: quality against speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dit_accel.cli.options import backbone_option, guidance_options, model_options, prompts_option
from dit_accel.io.parsing import parse_integers
from dit_accel.io.prompts import read_prompts

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings


@click.command("eval")
@prompts_option(required=True)
@click.option(
    "--methods",
    required=True,
    help="Settings separated by commas: METHOD[:KNOB=VALUE]... or a profile's file, for example "
    "svg2,svg2:top_p=0.8,mine.yaml",
)
@click.option("--seeds", default="0", show_default=True, help="Separated by commas.")
@click.option(
    "--floor",
    default="auto",
    show_default=True,
    help="Dense against dense: backend, bfloat16, both with a comma between, auto or none.",
)
@click.option("--fps", default=16, show_default=True, help="Of the videos on the page.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for results.jsonl, summary.json, pareto.png and report.html; resumes what is there.",
)
@backbone_option
@model_options
@guidance_options
def command(
    prompt_source: str,
    methods: str,
    seeds: str,
    floor: str,
    fps: int,
    out: Path,
    lpips_backbone: Path | None,
    base: RenderSettings,
) -> None:
    """Render every prompt and seed dense, then with each setting, and compare frame by frame."""
    from dit_accel_eval.report import evaluate
    from dit_accel_eval.runs import Evaluation
    from dit_accel_eval.settings import Setting, floors

    settings = [Setting.parse(text) for text in methods.split(",")]
    evaluation = Evaluation(
        replace(base, fps=fps),
        read_prompts(prompt_source),
        parse_integers("--seeds", seeds),
        [*floors(floor, base.dtype), *settings],
        lpips_backbone,
    )
    click.echo(evaluate(evaluation, out))
    click.echo(f"in {out}: results.jsonl, summary.json, pareto.png, report.html")
