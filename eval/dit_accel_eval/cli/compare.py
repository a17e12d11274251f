"""``dit-accel compare``: compare clips from any source with reference clips."""

from __future__ import annotations

from pathlib import Path

import click

from dit_accel.cli.messages import show_progress, show_usually_short, verbose_option
from dit_accel.cli.options import backbone_option
from dit_accel.errors import InvalidSettings
from dit_accel.extensions import require_extra
from dit_accel_eval.cli.extra import PAGE, download_option, download_weights, is_given


@click.command("compare")
@click.argument("reference", type=click.Path(exists=True, path_type=Path))
@click.argument("other", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--fps",
    type=click.IntRange(1, 1000),
    default=16,
    show_default=True,
    help="Set the frames per second of the videos on the page.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write compare.json and report.html to this folder.  [default: print the table only]",
)
@verbose_option
@download_option
@backbone_option
def command(
    reference: Path,
    other: Path,
    fps: int,
    out: Path | None,
    download: bool,
    lpips_backbone: Path | None,
) -> None:
    """Compare OTHER with REFERENCE.

    Both are videos, folders of images, or folders of clips with the same names.
    """
    if out is None and is_given("fps"):
        raise InvalidSettings("--fps is for the page: also give --out, or leave it out")
    require_extra("`dit-accel compare`", *PAGE)
    from dit_accel_eval.compare_files import compare, write_page

    download_weights(wanted=download)
    progress = show_progress()
    comparison = compare(reference, other, out, lpips_backbone, progress)
    if comparison.records:
        click.echo(comparison.table())
        if out:
            with show_usually_short("drawing the page"):
                write_page(comparison, out, fps)
            click.echo(f"written: {out / 'report.html'}")
    comparison.check(out)
