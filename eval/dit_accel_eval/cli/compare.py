"""``dit-accel compare``: clips that were made elsewhere, against others."""

from __future__ import annotations

from pathlib import Path

import click

from dit_accel.cli.options import backbone_option


@click.command("compare")
@click.argument("reference", type=click.Path(exists=True, path_type=Path))
@click.argument("other", type=click.Path(exists=True, path_type=Path))
@click.option("--fps", default=16, show_default=True, help="Of the videos on the page.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for compare.json and report.html.  [default: only the table]",
)
@backbone_option
def command(
    reference: Path, other: Path, fps: int, out: Path | None, lpips_backbone: Path | None
) -> None:
    """Compare OTHER with REFERENCE: two videos, two folders of pictures, or two folders of clips with the same
    names.
    """
    from dit_accel_eval.compare import compare

    click.echo(compare(reference, other, out, fps, lpips_backbone))
    if out:
        click.echo(f"written: {out / 'report.html'}")
