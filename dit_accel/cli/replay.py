"""``dit-accel replay``: the same render again."""

from __future__ import annotations

from pathlib import Path

import click

from dit_accel.cli.render import run
from dit_accel.media import read_metadata


@click.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Output; by default FILE-replay."
)
@click.option("--quiet", is_flag=True)
def command(file: Path, out: Path | None, quiet: bool) -> None:
    """Render again from the settings kept in FILE."""
    from dit_accel.render import RenderSettings

    kept = read_metadata(file)
    made_by = kept.pop("versions", {})
    kept.pop("seconds", None)
    if not quiet and made_by:
        click.echo("made with " + ", ".join(f"{k} {v}" for k, v in made_by.items()))
    run(
        [RenderSettings.from_dict(kept)],
        out or file.with_name(f"{file.stem}-replay{'.png' if file.suffix == '.png' else '.mp4'}"),
        quiet=quiet,
    )
