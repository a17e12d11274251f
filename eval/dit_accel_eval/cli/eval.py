"""``dit-accel eval``: measure quality against speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dit_accel.cli.messages import verbose_option
from dit_accel.cli.options import backbone_option, guidance_options, model_options, prompts_option
from dit_accel.extensions import require_extra
from dit_accel.io.parsing import parse_integers
from dit_accel.io.prompts import read_prompts
from dit_accel_eval.cli.extra import PAGE

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings


@click.command("eval")
@prompts_option(required=True)
@click.option(
    "--methods",
    required=True,
    help="Compare these settings, separated by commas: METHOD[:KNOB=VALUE]... or the file of a profile, for example "
    "svg2,svg2:top_p=0.8,mine.yaml.",
)
@click.option(
    "--seeds", default="0", show_default=True, help="Render with these seeds, separated by commas."
)
@click.option(
    "--floor",
    default="auto",
    show_default=True,
    help="Compare dense attention with another dense attention: backend, bfloat16, both separated by a comma, auto or "
    "none.",
)
@click.option(
    "--fps",
    type=click.IntRange(1, 1_000),
    default=16,
    show_default=True,
    help="Set the frames per second of the videos on the page.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Write results.jsonl, summary.json, pareto.png and report.html to this folder. Clips that it already holds "
    "are not rendered again.",
)
@verbose_option
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
    """Render every prompt and seed with dense attention and with each setting, and compare the frames."""
    prompts, seed_numbers = read_prompts(prompt_source), parse_integers("--seeds", seeds)
    from dit_accel.generation.validation import validate
    from dit_accel_eval.settings import Setting, floors

    base = replace(base, fps=fps)
    settings = [Setting.parse(text) for text in methods.split(",")]
    settings = [*floors(floor, base.dtype), *settings]
    require_extra("`dit-accel eval`", *PAGE)
    validate(replace(base, prompt=prompts[0]))
    from dit_accel_eval.report import evaluate
    from dit_accel_eval.runs import Evaluation

    evaluation = Evaluation(base, prompts, seed_numbers, settings, lpips_backbone)
    click.echo(evaluate(evaluation, out))
    click.echo(f"in {out}: results.jsonl, summary.json, pareto.png, report.html")
