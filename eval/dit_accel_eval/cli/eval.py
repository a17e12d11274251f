"""``dit-accel eval``: measure quality against speed."""

from __future__ import annotations

import shutil
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
from dit_accel.cli.options import backbone_option, guidance_options, model_options, prompts_option
from dit_accel.errors import InvalidSettings
from dit_accel.extensions import require_extra
from dit_accel.io.parsing import parse_integers
from dit_accel.io.prompts import read_prompts
from dit_accel_eval.cli.extra import PAGE, download_option, download_weights, is_given

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings

# Options that --redraw uses.
DRAWN = ("out", "redraw", "quiet", "verbose")


@click.command("eval", short_help="Compare settings with dense attention on prompts.")
@prompts_option()
@click.option(
    "--methods",
    help="Compare these settings, separated by commas: METHOD[:KNOB=VALUE]..., the file of a profile, or a recipe, for "
    "example svg2,svg2:top_p=0.8,mine.yaml,svg2:published.",
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
@click.option(
    "--redraw",
    is_flag=True,
    help="Render nothing: write the tables, the plot and the page of --out again, also those of an unfinished run.",
)
@click.option("--dry-run", is_flag=True, help="Check all settings and print the number of clips.")
@quiet_option
@verbose_option
@download_option
@backbone_option
@model_options
@guidance_options
def command(
    prompt_source: str | None,
    methods: str | None,
    seeds: str,
    floor: str,
    fps: int,
    out: Path,
    redraw: bool,
    dry_run: bool,
    quiet: bool,
    download: bool,
    lpips_backbone: Path | None,
    base: RenderSettings,
) -> None:
    """Render every prompt and seed with dense attention and with each setting, and compare the frames."""
    if redraw:
        check_alone()
        require_extra("`dit-accel eval`", *PAGE)
        write_results(out, quiet=quiet)
        return
    if prompt_source is None or methods is None:
        raise InvalidSettings("nothing to evaluate: give --prompts and --methods, or --redraw")
    prompts, seed_numbers = read_prompts(prompt_source), parse_integers("--seeds", seeds)
    progress = show_progress()
    with show_usually_short():
        from dit_accel.generation.validation import validate
        from dit_accel_eval.settings import Setting, floors

        base = replace(base, fps=fps)
        settings = [Setting.parse(text, base) for text in methods.split(",")]
        settings = [*floors(floor, base.dtype), *settings]
        require_extra("`dit-accel eval`", *PAGE)
        validate(replace(base, prompt=prompts[0]))
        from dit_accel_eval.runs import Evaluation, describe_cost, run_eval

    download_weights(wanted=download and not dry_run)
    evaluation = Evaluation(base, prompts, seed_numbers, settings, lpips_backbone)
    if dry_run:
        click.echo(describe_cost(evaluation, out))
        return
    if not run_eval(evaluation, out, progress):
        if not quiet:
            click.echo("this process has finished, others have not: the last one writes the report")
        return
    write_results(out, quiet=quiet)


def check_alone() -> None:
    """Raise InvalidSettings for options beside ``--redraw`` that it would ignore."""
    options = click.get_current_context().command.params
    given = {str(o.name): o.opts[-1] for o in options if o.name and is_given(o.name)}
    ignored = [text for name, text in given.items() if name not in DRAWN]
    if ignored:
        raise InvalidSettings(f"--redraw renders nothing: leave {', '.join(ignored)} out")


def write_results(out: Path, *, quiet: bool) -> None:
    """Write the results in a folder as tables, and then as a plot and a page. Print the table unless ``quiet``."""
    from dit_accel_eval.report import write_page, write_summary
    from dit_accel_eval.results import read_results

    results = read_results(out)
    # The table is safe before anything is drawn.
    table = write_summary(results, out, shutil.get_terminal_size((100, 24)).columns)
    if not quiet:
        click.echo(table)
    with show_usually_short("drawing the plot and the page"):
        write_page(results, out)
    if not quiet:
        click.echo(f"in {out}: results.jsonl, summary.json, pareto.png, report.html")
