"""Define ``dit-accel models``: list the model families."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dit_accel_pipelines import Family

NOTES = (
    "guidance: perturbed guidance works. In Python, other transformers work with methods that need no grid, because "
    "self-attention is recognized by its modules; register_family declares a family."
)


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the model families that can be made sparse, and what works with each.

    "tested" means that a tiny random transformer passed the family matrix: unchanged when dense, equal to dense at full
    selection, sparse where expected, tokens and text where declared, and restored afterwards.
    """
    from dit_accel_pipelines import REFUSED, families

    rows = [describe(family) for family in families()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{format_rows(rows)}\n\n{NOTES}")
    for row in rows:
        if row["remark"]:
            click.echo(f"{row['family']}: {row['remark']}.")
    for name, reason in REFUSED.items():
        click.echo(f"{name} is refused: {reason}.")


def describe(family: Family) -> dict[str, Any]:
    """Return a family's declaration as plain values."""
    return {
        "family": family.name,
        "transformers": list(family.transformers),
        "output": family.output,
        "joint": family.joint,
        "cfg": family.cfg,
        "perturbed_guidance": family.guidance,
        "status": family.status,
        "remark": family.remark,
    }


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return described families as a table."""
    from dit_accel.io.tables import format_table

    columns = {
        row["family"]: {
            "makes": row["output"],
            "text": "among the tokens" if row["joint"] else "apart",
            "CFG": row["cfg"],
            "guidance": "yes" if row["perturbed_guidance"] else "no",
            "status": row["status"],
            "transformers": ", ".join(row["transformers"]),
        }
        for row in rows
    }
    return format_table(columns)
