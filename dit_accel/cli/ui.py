"""Define ``dit-accel ui``: a page in the browser that compares dense with accelerated."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
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
from dit_accel.cli.options import model_options
from dit_accel.extensions import require_extra

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings


@click.command("ui")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Listen at this address. Whoever reaches another one can render, too.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=7860, show_default=True, help="Use this port."
)
@click.option("--open/--no-open", "opens", default=True, help="Open the page in the browser.")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the files in this folder.  [default: a temporary one]",
)
@quiet_option
@verbose_option
@model_options
def command(
    host: str, port: int, opens: bool, out: Path | None, quiet: bool, base: RenderSettings
) -> None:
    """Open a page in the browser that renders a prompt dense and accelerated.

    Sizes, steps and scales are the first values of the form. Nothing leaves this machine.
    """
    with show_usually_short():
        from dit_accel.generation.validation import validate_with_card

        validate_with_card(replace(base, prompt="-"))
        require_extra("`dit-accel ui`", "gradio", "torchmetrics", "lpips", extra="ui")
        from dit_accel.ui.page import serve
        from dit_accel.ui.studio import Studio
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        studio = Studio(base, folder.resolve())
        with show_progress().part(f"loading {base.model}"):
            studio.load()
        tell(f"http://{host}:{port} (Ctrl-C ends it)")
        serve(studio, host, port, opens=opens)
