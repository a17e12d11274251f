"""Write what `dit-accel eval` measured of the presets on the bundled model into their profiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dit_accel import Profile
from dit_accel.io.reading import read_json
from dit_accel_assets import profiles

FACTS = (
    *("model", "height", "width", "frames", "steps", "guidance_scale", "weights"),
    *("device", "threads", "dtype", "dense attention", "versions"),
)
FIGURES = ("clips", "psnr", "ssim", "speedup", "density_all", "correct", "correct_dense", "worst")


def measured(profile: Profile, name: str, summary: Mapping[str, Any]) -> Profile:
    """Return a shipped profile with the figures of its row in its provenance.

    Args:
        profile: The profile.
        name: Name of the preset, which is the setting's name in the summary.
        summary: Content of the ``summary.json`` of ``dit-accel eval --methods quality,balanced,fast``.

    Raises:
        click.ClickException: If the summary has no row of the preset.
    """
    row = next((row for row in summary["settings"] if row["setting"] == name), None)
    if row is None:
        raise click.ClickException(f"the summary has no row {name!r}: give --methods {name}")
    facts = {key: summary["facts"][key] for key in FACTS if key in summary["facts"]}
    figures = {key: row[key] for key in FIGURES if key in row}
    return dataclasses.replace(profile, provenance={**facts, **figures})


@click.command()
@click.argument("summary", type=click.Path(exists=True, path_type=Path))
def main(summary: Path) -> None:
    """Read SUMMARY, the summary.json of an evaluation, and write the provenance of the shipped profiles in it."""
    content = read_json(summary, "summary")
    rows = {row["setting"] for row in content["settings"]}
    for name, path in profiles().items():
        if name in rows:
            measured(Profile.load(path), name, content).save(path)
            click.echo(f"written: {path}")


if __name__ == "__main__":
    main()
