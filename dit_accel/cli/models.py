"""``dit-accel models``: the table of families."""

from __future__ import annotations

import json

import click


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(as_json: bool) -> None:
    """List the model families that can be made sparse."""
    from dit_accel_pipelines import families

    rows = [
        {
            "family": f.name,
            "transformers": list(f.transformers),
            "output": f.output,
            "cfg": f.cfg,
            "status": f.tested,
        }
        for f in families()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        names = ", ".join(row["transformers"])
        cfg = row["cfg"] if row["cfg"] == "embedded" else f"in {row['cfg']}"
        click.echo(f"{row['family']}: {names} ({row['output']}, guidance {cfg}, {row['status']})")
