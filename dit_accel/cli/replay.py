"""Define ``dit-accel replay``: render again from the settings kept in a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from dit_accel.cli.messages import (
    quiet_option,
    show_progress,
    show_usually_short,
    verbose_option,
)
from dit_accel.cli.render import render_jobs
from dit_accel.errors import InvalidSettings
from dit_accel.io.media import read_metadata, read_tags
from dit_accel.io.reading import parse_json


def read_settings(file: Path) -> dict[str, Any]:
    """Return the render settings kept in a file by the command line, or by our nodes in ComfyUI.

    Raises:
        InvalidSettings: if the file is missing or holds neither.
    """
    try:
        return read_metadata(file)
    except InvalidSettings:
        workflow = read_tags(file).get("prompt")
        if workflow is None:
            raise
    from dit_accel.comfyui.replay import read_workflow_settings

    try:
        return read_workflow_settings(parse_json(workflow))
    except ValueError as error:
        raise InvalidSettings(f"{file}: {error}") from None
    except (LookupError, TypeError, AttributeError):
        raise InvalidSettings(f"the workflow in {file} is not one of ComfyUI's") from None


@click.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Write to this file.  [default: FILE-replay]",
)
@quiet_option
@verbose_option
def command(file: Path, out: Path | None, quiet: bool) -> None:
    """Render again from the settings kept in FILE."""
    with show_usually_short():
        from dit_accel.generation.batch import BatchOptions, plan_jobs
        from dit_accel.generation.settings import RenderSettings
        from dit_accel.generation.validation import check_numbers

    values = read_settings(file)
    versions, files = values.pop("versions", None), values.pop("ingredients", None)
    values.pop("seconds", None)
    settings = RenderSettings.from_dict(values)
    check_numbers(settings)
    # One process renders it again, however many split the first render.
    settings = dataclasses.replace(settings, ulysses=1)
    if not quiet and isinstance(versions, dict):
        click.echo("made with " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    suffix = ".png" if file.suffix == ".png" else ".mp4"
    options = BatchOptions(progress=show_progress())
    default = file.with_name(f"{file.stem}-replay{suffix}")
    jobs = plan_jobs([settings], out, options, default=default, inputs=[file])
    if files not in (None, jobs[0].files):
        click.echo("warning: the model, a LoRA or the image has changed since", err=True)
    render_jobs(jobs, options, quiet=quiet)
