"""Name the packages of the extra ``eval`` that commands need, and offer to download weights."""

from __future__ import annotations

import click

# Metrics, and the page with its plot and its videos.
PAGE = (
    *("imageio", "imageio_ffmpeg", "jinja2", "lpips", "matplotlib"),
    *("scipy", "sklearn", "torchmetrics"),
)

download_option = click.option(
    "--download",
    is_flag=True,
    help="Download the weights of LPIPS (233 MB, AlexNet) from torchvision if they are missing.",
)


def is_given(name: str) -> bool:
    """Return True if an option of the current command was given on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def download_weights(*, wanted: bool) -> None:
    """Download the weights of LPIPS if they are wanted and missing."""
    if wanted:
        from dit_accel_eval.metrics.lpips import download_backbone

        click.echo(f"LPIPS weights: {download_backbone()}", err=True)
