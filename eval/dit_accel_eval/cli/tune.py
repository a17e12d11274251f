"""``dit-accel tune``: search for a profile that holds a quality target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dit_accel.cli.messages import (
    quiet_option,
    show_progress,
    show_usually_short,
    verbose_option,
)
from dit_accel.cli.options import backbone_option, model_options, prompts_option
from dit_accel.errors import InvalidSettings
from dit_accel.extensions import require_extra
from dit_accel.io.prompts import read_prompts
from dit_accel_eval.cli.extra import PAGE, download_option, download_weights, is_given

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings


@click.command("tune", short_help="Find the fastest profile that holds a quality target.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Hold this quality against dense attention: psnr>=30, psnr_objects>=30, ssim>=0.9, lpips<=0.1, "
    "st_lpips<=0.1, cvvdp>=9 or caption>=0.9; may be repeated. The whole 95 % interval of the mean must hold it.",
)
@click.option(
    "--speedup",
    type=click.FloatRange(min=0, min_open=True),
    help="Reach this speed-up at least, and search for the best quality instead of the best speed.",
)
@prompts_option(required=True)
@click.option(
    "--clips",
    type=click.IntRange(2, 10_000),
    default=5,
    show_default=True,
    help="Try every setting on this many clips. Two or three widen the interval, and then few settings hold.",
)
@click.option(
    "--validate",
    "validation",
    type=click.IntRange(2, 10_000),
    default=20,
    show_default=True,
    help="Validate the winner on this many fresh clips.",
)
@click.option(
    "--trials",
    type=click.IntRange(1, 1_000_000),
    default=60,
    show_default=True,
    help="Try this many settings.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, 1e6, min_open=True),
    default=60.0,
    show_default=True,
    help="Begin no trial after this many minutes of trials, those of earlier runs included. A trial that runs ends "
    "later. Dense reference clips and the validation do not count.",
)
@click.option(
    "--levers",
    help="Try these levers, separated by commas: attention, cache, linears, compile; or kinds of caches and linear "
    "layers, such as taylorseer and int8-dynamic.  [default: all that the model and the device can use]",
)
@click.option(
    "--methods",
    default="svg2,svg-ear,re-ttention",
    show_default=True,
    help="Try these methods, separated by commas.",
)
@click.option(
    "--budgets",
    type=click.IntRange(0, 10_000),
    default=0,
    show_default=True,
    help="First measure svg-ear's error in each layer and range of steps, on this many clips of the search.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Set the seed of the search.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Write the profile to this .yaml or .json file. Trials and a plot are written beside it, and a second run "
    "continues.",
)
@click.option("--dry-run", is_flag=True, help="Check all settings and print the cost.")
@quiet_option
@verbose_option
@download_option
@backbone_option
@model_options
def command(
    targets: tuple[str, ...],
    speedup: float | None,
    prompt_source: str,
    clips: int,
    validation: int,
    trials: int,
    minutes: float,
    levers: str | None,
    methods: str,
    budgets: int,
    seed: int,
    out: Path,
    dry_run: bool,
    quiet: bool,
    download: bool,
    lpips_backbone: Path | None,
    base: RenderSettings,
) -> None:
    """Find the fastest profile that holds a quality target.

    The search uses some of the prompts. The winner must also hold the target on the others.
    """
    prompts, names = read_prompts(prompt_source), tuple(methods.split(","))
    chosen = read_levers(levers)
    progress = show_progress()
    with show_usually_short():
        from dit_accel.generation.tiny_world import warn_unreadable
        from dit_accel.generation.validation import validate
        from dit_accel_eval.tune.ladders import check_lever_names
        from dit_accel_eval.tune.space import check_methods
        from dit_accel_eval.tune.targets import Target

        check_methods(names)
        check_lever_names(chosen)
        goals = tuple(Target.parse(text) for text in targets)
        require_extra("`dit-accel tune`", "filelock", "optuna", *PAGE)
        validate(replace(base, prompt=prompts[0]))
        warn_unreadable(prompts, base.model)
        from dit_accel_eval.tune import cost, run
        from dit_accel_eval.tune.describe import describe_result
        from dit_accel_eval.tune.goal import Goal

    download_weights(wanted=download and not dry_run)
    tuning = run.Tuning(
        Goal(goals, speedup),
        base,
        prompts,
        clips=clips,
        validation=validation,
        trials=trials,
        minutes=minutes,
        methods=names,
        seed=seed,
        backbone=lpips_backbone,
        budgets=budgets,
        levers=chosen,
    )
    if dry_run:
        click.echo(cost.describe_cost(tuning, out))
        return
    tuned = run.tune(tuning, out, progress)
    if tuned is not None and not quiet:  # only the first process gets the result
        click.echo(f"{describe_result(tuning, tuned)}\nwritten: {out}")


def read_levers(levers: str | None) -> tuple[str, ...] | None:
    """Return the names of levers in a text, or None for all.

    Raises:
        InvalidSettings: if --methods was given, and attention is not among the levers.
    """
    chosen = None if levers is None else tuple(levers.split(","))
    if chosen and "attention" not in chosen and is_given("methods"):
        raise InvalidSettings(
            f"--methods has no effect with --levers {levers}: add attention there, or leave --methods out"
        )
    return chosen
