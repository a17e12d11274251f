"""Write what `studies.levers_table` measured of the presets on the bundled model into their profiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dit_accel import Profile
from dit_accel.generation.settings import resolve_size
from dit_accel.io.reading import read_json
from dit_accel_assets import profiles

FACTS = ("steps", "guidance_scale", "weights", "dense", "versions")
FIGURES = (
    *("clips", "psnr", "ssim", "st_lpips", "speedup", "density_all_calls"),
    *("skipped", "correct", "correct_dense"),
)


def measured(profile: Profile, name: str, table: Mapping[str, Any]) -> Profile:
    """Return a shipped profile with the figures of its row in its provenance.

    Args:
        profile: The profile.
        name: Name of the preset, which is the setting's name in the table.
        table: Content of the ``levers.json`` of ``studies.levers_table --group presets``.

    Raises:
        click.ClickException: If the table has no row of the preset.
    """
    row = next((row for row in table["rows"] if row["setting"] == name), None)
    if row is None:
        raise click.ClickException(f"the table has no row {name!r}: measure --group presets")
    settings = table["settings"]
    facts = {"model": "tiny-world", **resolve_size(settings["size"], None, None, None)._asdict()}
    facts |= {key: settings[key] for key in FACTS} | {"seconds": "processor seconds of one thread"}
    return dataclasses.replace(profile, provenance={**facts, **{key: row[key] for key in FIGURES}})


@click.command()
@click.argument("table", type=click.Path(exists=True, path_type=Path))
def main(table: Path) -> None:
    """Read TABLE, a levers.json, and write the provenance of the shipped profiles that were not tuned."""
    content = read_json(table, "table")
    for name, path in profiles().items():
        profile = Profile.load(path)
        if "promise" not in profile.provenance:
            measured(profile, name, content).save(path)
            click.echo(f"written: {path}")


if __name__ == "__main__":
    main()
