"""Define ``dit-accel comfyui``: install the nodes into a ComfyUI, or remove them."""

from __future__ import annotations

from pathlib import Path

import click

folder_argument = click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path)
)


@click.group("comfyui")
def command() -> None:
    """Install the ComfyUI nodes, or remove them."""


@command.command()
@folder_argument
def install(folder: Path) -> None:
    """Install the nodes into FOLDER, a ComfyUI."""
    from dit_accel.comfyui.install import install as install_nodes

    click.echo(f"written: {install_nodes(folder)}; restart ComfyUI")


@command.command()
@folder_argument
def uninstall(folder: Path) -> None:
    """Remove the nodes from FOLDER, a ComfyUI."""
    from dit_accel.comfyui.install import uninstall as uninstall_nodes

    removed = uninstall_nodes(folder)
    click.echo(f"removed: {removed}" if removed else f"nothing of dit-accel in {folder}")
