"""``dit-accel methods``: the table of methods."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click


@click.command("methods")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(as_json: bool) -> None:
    """List the attention methods, their knobs and their sources."""
    from dit_accel.methods import METHODS

    rows = [describe(method) for method in METHODS.values()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']}: {row['about']} [{row['source']}]")
        for knob in row["knobs"]:
            click.echo(f"    {knob['name']} = {knob['default']}    ({knob['type']})")
    click.echo(
        "\nEvery method takes the schedule's knobs, too: --set schedule.dense_steps=0.2, and so on."
    )


def describe(method: Any) -> dict[str, Any]:
    """Name, first paragraph of documentation, source and knobs of a method class."""
    fields = dataclasses.fields(method)
    return {
        "name": method.name,
        "about": " ".join((method.__doc__ or "").split("\n\n")[0].split()),
        "source": method.source,
        "knobs": [{"name": f.name, "type": str(f.type), "default": f.default} for f in fields],
    }
