"""``dit-accel comfyui``: the nodes in a ComfyUI."""

from __future__ import annotations

from pathlib import Path

import click

from dit_accel.comfyui import install as shim

folder_argument = click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path)
)


@click.group("comfyui")
def command() -> None:
    """Put the nodes into a ComfyUI, or take them out."""


@command.command()
@folder_argument
def install(folder: Path) -> None:
    """Lead FOLDER, a ComfyUI, to this package's nodes."""
    click.echo(f"written: {shim.install(folder)}; restart ComfyUI")


@command.command()
@folder_argument
def uninstall(folder: Path) -> None:
    """Remove what `install` wrote from FOLDER."""
    removed = shim.uninstall(folder)
    click.echo(f"removed: {removed}" if removed else f"nothing of ours in {folder}")
