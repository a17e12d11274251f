"""Define ``dit-accel methods``: list the attention methods and the presets, or explain one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from dit_accel.core.knob_docs import SHARED, describe
from dit_accel.errors import InvalidSettings


@click.command("methods")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the attention methods with their knobs, and the presets, or explain the NAME of one.

    NAME is a method, or schedule or guard, whose knobs every sparse method takes, or a preset. The published recipes
    of a method are listed, too.
    """
    from dit_accel.runtime.presets import PRESETS

    if name is not None and name in PRESETS:
        rules = PRESETS[name].describe(name)
        click.echo(json.dumps(rules, indent=2) if as_json else format_preset(rules))
        return
    if name is not None:
        from dit_accel.runtime.recipes import list_recipes

        described = describe(find_target(name), name)
        described["recipes"] = [recipe.describe() for recipe in list_recipes(method=name)]
        click.echo(json.dumps(described, indent=2) if as_json else format_explained(described))
        return
    from dit_accel.methods import METHODS

    methods = [describe(method, method_name) for method_name, method in METHODS.items()]
    if as_json:
        click.echo(json.dumps(methods, indent=2))
        return
    shared = [describe(find_target(part), part) for part in SHARED]
    click.echo("\n".join(format_listed(described) for described in [*methods, *shared]))
    click.echo(
        "\nEvery sparse method takes the knobs of schedule and guard: --set schedule.dense_steps=0.2."
    )
    click.echo("\nPresets choose attention and step cache for a model, for --preset:")
    click.echo("\n".join(f"    {name}: {preset.about}" for name, preset in PRESETS.items()))
    click.echo("`dit-accel methods NAME` explains the knobs of a method, or the rules of a preset.")


def find_target(name: str) -> type[Any]:
    """Return the class whose fields are the knobs of a method, of ``schedule`` or of ``guard``.

    Raises:
        InvalidSettings: for an unknown name.
    """
    from dit_accel.core.schedule import Guard, Schedule
    from dit_accel.methods import METHODS

    targets: dict[str, type[Any]] = {**METHODS, "schedule": Schedule, "guard": Guard}
    if name not in targets:
        from dit_accel.runtime.presets import PRESETS

        accepted = ", ".join([*targets, *PRESETS])
        raise InvalidSettings(f"unknown method {name!r}: choose one of {accepted}")
    return targets[name]


def format_listed(described: dict[str, Any]) -> str:
    """Return a summary and one line per knob."""
    knobs = [
        f"    {knob['name']} = {knob['default']}    ({knob['type']})" for knob in described["knobs"]
    ]
    return "\n".join([_format_head(described), *knobs])


def format_explained(described: dict[str, Any]) -> str:
    """Return a summary and, for each knob, its type, its default and its sentence."""
    lines = [_format_head(described)]
    for knob in described["knobs"]:
        lines += ["", f"  {knob['name']}: {knob['type']}, default {knob['default']}"]
        if knob["about"]:
            lines.append(click.wrap_text(knob["about"], 100, "      ", "      "))
    if described["recipes"]:
        lines += ["", "Published recipes, for --profile and for profile= in Python:"]
        lines += [format_recipe(recipe) for recipe in described["recipes"]]
        lines += ["", f"--profile {described['name']}:published takes the one for the model."]
    return "\n".join(lines)


def format_preset(rules: Mapping[str, Any]) -> str:
    """Return a described preset: its rules, and what was measured of it."""
    parts = {
        "attention": rules["attention"],
        "cache": rules["cache"],
        "measured": rules["measured"],
        "bundled model": f"a profile of its own, {rules['bundled']}",
    }
    lines = [f"{rules['name']}: {rules['about']}"]
    for part, text in parts.items():
        lines += ["", f"  {part}", click.wrap_text(f"{text}.", 100, "      ", "      ")]
    lines += ["", f'--preset {rules["name"]}, or enable_acceleration("{rules["name"]}") in Python.']
    return "\n".join(lines)


def format_recipe(recipe: Mapping[str, Any]) -> str:
    """Return name, model, settings and source of a described recipe."""
    size = f", {recipe['width']}x{recipe['height']}" if recipe["width"] else ""
    size += f", {recipe['frames']} frames" if recipe["frames"] else ""
    steps = f", {recipe['steps']} steps" if recipe["steps"] else ""
    variant = f" with {recipe['variant']}" if recipe["variant"] else ""
    lines = [f"{recipe['model']}{variant}{size}{steps}. Source: {recipe['citation']}."]
    settings = [*recipe["knobs"].items()]
    settings += [(f"schedule.{name}", value) for name, value in recipe["schedule"].items()]
    lines.append(" ".join(f"{name}={value}" for name, value in settings))
    if recipe["differs"]:
        lines.append(f"Differs: {recipe['differs']}.")
    wrapped = [click.wrap_text(line, 100, "      ", "      ") for line in lines]
    return "\n".join(["", f"  {recipe['name']}", *wrapped])


def _format_head(described: dict[str, Any]) -> str:
    source = "" if described["source"] == "-" else f" [{described['source']}]"
    return f"{described['name']}: {described['about']}{source}"
