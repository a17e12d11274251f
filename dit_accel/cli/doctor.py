"""``dit-accel doctor``: what this machine can run."""

from __future__ import annotations

import json

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(as_json: bool) -> None:
    """Say which versions and devices are here and what will be used."""
    from dit_accel.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps(findings, indent=2))
        return
    for section, lines in findings.items():
        click.echo(f"{section}:")
        for name, value in lines.items():
            click.echo(f"    {name}: {value}")
