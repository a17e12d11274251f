"""Define ``dit-accel render``: render prompts to files."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dit_accel.cli.messages import (
    quiet_option,
    show_progress,
    show_usually_short,
    tell,
    verbose_option,
)
from dit_accel.cli.options import (
    attention_options,
    backbone_option,
    guidance_options,
    model_options,
    prompts_option,
)
from dit_accel.errors import InvalidSettings
from dit_accel.extensions import load_extension
from dit_accel.io.prompts import read_prompts

COMMANDLINE = click.core.ParameterSource.COMMANDLINE

if TYPE_CHECKING:
    from dit_accel.generation.batch import BatchOptions, Job, Rendered
    from dit_accel.generation.settings import RenderSettings


@click.command("render")
@click.argument("prompts", nargs=-1)
@prompts_option()
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Write to this .mp4 or .png file, or to this folder for several prompts.",
)
@attention_options
@click.option("--image", help="Start from this image, or change it, if the pipeline takes one.")
@click.option("--seed", default=0, show_default=True, help="Set the seed of the noise.")
@click.option("--fps", default=16, show_default=True, help="Set the frames per second.")
@click.option(
    "--compare", is_flag=True, help="Also render dense; write a side-by-side clip and a strip."
)
@click.option(
    "--explain",
    is_flag=True,
    help="With --compare, also render without each lever, and print what it saves and costs.",
)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Write what was done to this JSON file."
)
@click.option(
    "--context-parallel",
    metavar="ulysses=N",
    help="Split each clip among the N processes of torchrun; without it they split the prompts.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Render files again that were made with the same settings, and replace all others.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and print what would be rendered.")
@quiet_option
@verbose_option
@backbone_option
@model_options
@guidance_options
def command(
    prompts: tuple[str, ...],
    prompt_source: str | None,
    out: Path | None,
    image: str | None,
    seed: int,
    fps: int,
    compare: bool,
    explain: bool,
    report: Path | None,
    context_parallel: str | None,
    overwrite: bool,
    dry_run: bool,
    quiet: bool,
    lpips_backbone: Path | None,
    base: RenderSettings,
) -> None:
    """Render PROMPTS to videos; a single frame is a PNG image."""
    texts = [*prompts, *(read_prompts(prompt_source) if prompt_source else [])]
    if not texts:
        raise InvalidSettings("no prompt: give PROMPT..., or --prompts FILE")
    check_effect(compare=compare, explain=explain, lpips_backbone=lpips_backbone)
    ulysses = parse_ulysses(context_parallel)
    base = dataclasses.replace(base, image=image, seed=seed, fps=fps, ulysses=ulysses)
    requests = [dataclasses.replace(base, prompt=text) for text in texts]
    context, progress = click.get_current_context(), show_progress()
    files = [prompt_source, lpips_backbone, context.params["profile"]]
    with show_usually_short():
        from dit_accel.generation.batch import Batch, BatchOptions, describe_jobs, plan_jobs
        from dit_accel.generation.distributed import Process

        options = BatchOptions(compare, lpips_backbone, report, overwrite, progress, explain)
        jobs = plan_jobs(requests, out, options, inputs=[Path(name) for name in files if name])
    is_image = all(job.path.suffix == ".png" for job in jobs)
    if is_image and context.get_parameter_source("fps") == COMMANDLINE:
        raise InvalidSettings("an image has no frames per second: leave --fps out")
    if dry_run:
        Batch(jobs, options, Process()).find_pending()
        for description in describe_jobs(jobs):
            click.echo(json.dumps(description, indent=2))
        return
    render_jobs(jobs, options, quiet=quiet)


def check_effect(*, compare: bool, explain: bool, lpips_backbone: Path | None) -> None:
    """Refuse options that would change nothing.

    Raises:
        InvalidSettings: naming the option.
    """
    if lpips_backbone is not None and not compare:
        raise InvalidSettings("--lpips-backbone measures a comparison: also give --compare")
    if explain and not compare:
        raise InvalidSettings("--explain measures against the dense clip: also give --compare")


def render_jobs(jobs: Sequence[Job], options: BatchOptions, *, quiet: bool) -> None:
    """Render planned jobs, and print the files and figures of each unless ``quiet``."""
    from dit_accel.generation.batch import Batch
    from dit_accel.generation.distributed import this_process
    from dit_accel.generation.forecast import predict_no_effect
    from dit_accel.generation.settings import build_profile
    from dit_accel.runtime.cost_model import SlowdownWarning

    process, settings = this_process(jobs[0].settings.ulysses), jobs[0].settings
    reason = predict_no_effect(settings, jobs[0].card, build_profile(settings))
    if reason and process.rank == 0:
        tell(reason)
    batch = Batch(jobs, options, process)
    with warnings.catch_warnings():
        if reason:  # it was told above
            warnings.simplefilter("ignore", SlowdownWarning)
        summary = batch.run(None if quiet else lambda rendered: click.echo(describe(rendered)))
    if not quiet and len(jobs) > 1 and process.writes:
        click.echo(f"{summary.rendered} rendered, {summary.skipped} already done")


def describe(rendered: Rendered) -> str:
    """Return the files of a job, and its attention report or the tables of its comparison."""
    files = "\n".join(str(path) for path in rendered.files)
    if rendered.dense is None:
        return f"{files}\n{rendered.clip.attention}"
    from dit_accel.generation.explain import format_levers

    summary = load_extension("comparison").summary(
        rendered.dense, rendered.clip, rendered.quality, rendered.job.settings.label
    )
    levers = format_levers(rendered.clip.attention, rendered.explained)
    return "\n".join(part for part in (files, summary, levers) if part)


def parse_ulysses(text: str | None) -> int:
    """Return N of ``ulysses=N``, or 1 for None.

    Raises:
        InvalidSettings: for any other text.
    """
    if text is None:
        return 1
    kind, _, degree = text.partition("=")
    if kind == "ring":
        raise InvalidSettings(
            "ring attention brings the keys of one device at a time, and sparse attention needs all of them: "
            "use ulysses=N"
        )
    if kind != "ulysses" or not re.fullmatch(r"[1-9][0-9]{0,5}", degree):
        raise InvalidSettings(f"--context-parallel takes ulysses=N, got {text!r}")
    return int(degree)
