"""``dit-accel models``: the table of families."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(as_json: bool) -> None:
    """List the model families that can be made sparse, and what works with each.

    "tested": a tiny random transformer went through the whole family matrix: unchanged when dense, equal to dense at
    full selection, sparse calls where expected, tokens and text where declared, restored afterwards.
    """
    from dit_accel.io.tables import table
    from dit_accel_pipelines import REFUSED, families

    rows = [row_of(family) for family in families()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    shown = {
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
    click.echo(table(shown))
    click.echo(
        "\nguidance: perturbed guidance. Other transformers, in Python: self-attention is recognised by its"
    )
    click.echo("modules, for methods that need no grid; register_family declares one.")
    for row in rows:
        if row["remark"]:
            click.echo(f"{row['family']}: {row['remark']}.")
    for name, reason in REFUSED.items():
        click.echo(f"{name} is refused: {reason}.")


def row_of(family: Any) -> dict[str, Any]:
    """What a declaration says, as plain values."""
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
