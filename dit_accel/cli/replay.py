"""``dit-accel replay``: the same render again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dit_accel.errors import InvalidSettings
from dit_accel.generation.batch import run
from dit_accel.io.media import read_metadata, read_tags


def settings_in(file: Path) -> dict[str, Any]:
    """Ours, or those of our nodes in a workflow that ComfyUI kept."""
    try:
        return read_metadata(file)
    except InvalidSettings:
        workflow = read_tags(file).get("prompt")
        if workflow is None:
            raise
    from dit_accel.comfyui.replay import read_settings

    try:
        return read_settings(json.loads(workflow))
    except ValueError as error:
        raise InvalidSettings(f"{file}: {error}") from None


@click.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Output; by default FILE-replay."
)
@click.option("--quiet", is_flag=True)
def command(file: Path, out: Path | None, quiet: bool) -> None:
    """Render again from the settings kept in FILE."""
    from dit_accel.generation.settings import RenderSettings

    kept = settings_in(file)
    made_by = kept.pop("versions", {})
    kept.pop("seconds", None)
    kept["ulysses"] = 1  # one process makes it again
    if not quiet and made_by:
        click.echo("made with " + ", ".join(f"{k} {v}" for k, v in made_by.items()))
    run(
        [RenderSettings.from_dict(kept)],
        out or file.with_name(f"{file.stem}-replay{'.png' if file.suffix == '.png' else '.mp4'}"),
        quiet=quiet,
    )
