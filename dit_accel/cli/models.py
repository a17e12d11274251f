"""Define ``dit-accel models``: list the model families."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from dit_accel.cli.methods import format_recipe
from dit_accel.errors import InvalidSettings

if TYPE_CHECKING:
    from dit_accel_pipelines import Family

NOTES = (
    "guidance: perturbed guidance works. In Python, other transformers work with methods that need no grid, because "
    "self-attention is recognized by its modules; register_family declares a family."
)


@click.command("models")
@click.argument("name", metavar="[FAMILY]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the model families that can be made sparse, and what works with each.

    With the name of a FAMILY, list the published recipes and heads for it.

    "tested" means that a tiny random transformer passed the family matrix: unchanged when dense, equal to dense at full
    selection, sparse where expected, tokens and text where declared, and restored afterwards.
    """
    from dit_accel.guidance.published import list_published
    from dit_accel_pipelines import REFUSED, families

    rows = [describe(family) for family in families(linear=name is not None)]
    if name is not None:
        row = find_row(rows, name)
        click.echo(json.dumps(row, indent=2) if as_json else format_explained(row))
        return
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{format_rows(rows)}\n\n{NOTES}")
    counts = [f"{row['family']} ({len(row['recipes'])})" for row in rows if row["recipes"]]
    click.echo(
        f"`dit-accel models FAMILY` lists the published recipes of these families: {', '.join(counts)}."
    )
    published = Counter(heads.family for heads in list_published())
    counts = [f"{family} ({count})" for family, count in sorted(published.items())]
    click.echo(f"It also lists the published heads of these families: {', '.join(counts)}.")
    for row in rows:
        if row["remark"]:
            click.echo(f"{row['family']}: {row['remark']}.")
    for name, reason in REFUSED.items():
        click.echo(f"{name} is refused: {reason}.")


def describe(family: Family) -> dict[str, Any]:
    """Return a family's declaration and its recipes as plain values."""
    from dit_accel.guidance.published import list_published
    from dit_accel.runtime.recipes import list_recipes

    return {
        "family": family.name,
        "transformers": list(family.transformers),
        "output": family.output,
        "joint": family.joint,
        "cfg": family.cfg,
        "perturbed_guidance": family.guidance,
        "status": family.status,
        "remark": family.remark,
        "recipes": [recipe.describe() for recipe in list_recipes(family=family.name)],
        "heads": [heads.describe() for heads in list_published(family.name)],
    }


def find_row(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the described family of a name.

    Raises:
        InvalidSettings: for an unknown name.
    """
    for row in rows:
        if row["family"] == name:
            return row
    names = ", ".join(row["family"] for row in rows)
    raise InvalidSettings(f"unknown family {name!r}: choose one of {names}")


def format_explained(row: Mapping[str, Any]) -> str:
    """Return a described family as a table, with its remark and its recipes."""
    lines = [format_rows([row])]
    if row["remark"]:
        lines += ["", f"{row['remark']}."]
    recipes = [format_recipe(recipe) for recipe in row["recipes"]]
    listed = "Published recipes, for --profile and for profile= in Python:"
    lines += ["", *([listed, *recipes] if recipes else ["No recipe was published for it."])]
    if row["heads"]:
        lines += ["", "Published heads, for --heads and for heads= in Python:"]
        lines += [format_heads(heads) for heads in row["heads"]]
    return "\n".join(lines)


def format_heads(heads: Mapping[str, Any]) -> str:
    """Return name, model, heads, settings and source of described published heads."""
    used = {"guidance_scale": heads["guidance_scale"], "steps": heads["steps"]}
    beside = " ".join(f"{name}={value}" for name, value in used.items() if value is not None)
    settings = " ".join(f"{name}={value}" for name, value in heads["settings"].items())
    lines = [
        f"{heads['model']}. Source: {heads['citation']}.",
        f"{heads['heads'] or 'no heads were published'}: {settings}",
        f"Used there with {beside}." if beside else "",
        f"Assumed: {heads['assumes']}." if heads["assumes"] else "",
        f"Search: dit-accel heads search --setting {heads['search']}" if heads["search"] else "",
    ]
    wrapped = [click.wrap_text(line, 100, "      ", "      ") for line in lines if line]
    return "\n".join(["", f"  {heads['name']}", *wrapped])


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
