"""Define ``dit-accel doctor``: check what this machine can run."""

from __future__ import annotations

import json

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Print versions and devices, check each op, and say what will be used."""
    from dit_accel.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps(findings, indent=2))
        return
    for section, lines in findings.items():
        click.echo(f"{section}:")
        for name, value in lines.items():
            click.echo(f"    {name}: {value}")
