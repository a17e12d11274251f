"""``dit-accel bench``: kernels and layers against what else this machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dit_accel.lazy import load


@click.command("bench")
@click.argument("what", type=click.Choice(["kernels", "layer", "model"]))
@click.option("--shapes", required=True, help="Names separated by commas; a wrong one lists them.")
@click.option("--precisions", default="full", show_default=True, help="Of the sparse calls.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="bfloat16",
    show_default=True,
)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--density", default=0.25, show_default=True, help="Share of key clusters (layer, model)."
)
@click.option("--query-clusters", type=int, help="Per head (layer); default: svg2's own.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="JSONL file; what it has is kept."
)
def command(
    what: str,
    shapes: str,
    precisions: str,
    dtype: str,
    device: str,
    density: float,
    query_clusters: int | None,
    out: Path,
) -> None:
    """Time attention kernels alone, a whole layer call with its planning, or a model's forward."""
    rows = load("run_bench")(
        what,
        shapes.split(","),
        tuple(precisions.split(",")),
        dtype,
        device,
        density,
        query_clusters,
        out,
    )
    for row in rows:
        click.echo(f"{row['key']['shape']} {row['key']['dtype']}: {line(row)}")


def line(row: dict[str, Any]) -> str:
    """A row's figures, three digits each."""
    hidden = ("key", "missing")
    shown = {k: v for k, v in row.items() if k not in hidden and v is not None}
    return ", ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
    )
