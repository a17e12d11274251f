"""``dit-accel tune``: a profile that keeps a promise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dit_accel.cli.options import backbone_option, model_options, prompts_option
from dit_accel.io.prompts import read_prompts

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings


@click.command("tune")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="What to hold against dense: psnr>=30, psnr_objects, ssim, lpips<=0.1, caption; may be repeated.",
)
@click.option("--speedup", type=float, help="Instead: the best quality at this speed-up or above.")
@prompts_option(required=True)
@click.option("--clips", default=5, show_default=True, help="Clips that every setting is tried on.")
@click.option("--validate", default=20, show_default=True, help="Fresh clips for the winner.")
@click.option("--trials", default=60, show_default=True, help="Settings to try.")
@click.option("--minutes", default=60.0, show_default=True, help="The search ends by then.")
@click.option("--methods", default="svg2,svg-ear,re-ttention", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the search.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The profile (.yaml, .json); its trials and a plot are kept beside it, and gone on with.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and say what it would cost.")
@backbone_option
@model_options
def command(
    targets: tuple[str, ...],
    speedup: float | None,
    prompt_source: str,
    clips: int,
    validate: int,
    trials: int,
    minutes: float,
    methods: str,
    seed: int,
    out: Path,
    dry_run: bool,
    lpips_backbone: Path | None,
    base: RenderSettings,
) -> None:
    """Search for the fastest profile that holds a quality on prompts it was not searched on."""
    from dit_accel_eval.tune import run
    from dit_accel_eval.tune.search import Goal
    from dit_accel_eval.tune.targets import Target

    tuning = run.Tuning(
        Goal(tuple(Target.parse(text) for text in targets), speedup),
        base,
        read_prompts(prompt_source),
        clips=clips,
        validation=validate,
        trials=trials,
        minutes=minutes,
        methods=tuple(methods.split(",")),
        seed=seed,
        backbone=lpips_backbone,
    )
    if dry_run:
        click.echo(run.describe_cost(tuning, out))
        return
    tuned = run.tune(tuning, out)
    if tuned is None:  # in all processes but the first
        return
    click.echo(f"{run.describe_result(tuning, tuned)}\nwritten: {out}")
