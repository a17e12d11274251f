"""Descriptions of methods and of their knobs, read from docstrings and fields of dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

# Knobs that every method takes, by the prefix of their names in --set.
SHARED = ("schedule", "guard")


def describe(target: type[Any], name: str) -> dict[str, Any]:
    """Return name, summary, source and knobs of a class, from its docstring and its fields."""
    sentences, hints = read_attributes(target), get_type_hints(target)
    prefix = f"{name}." if name in SHARED else ""
    return {
        "name": name,
        "about": " ".join((inspect.getdoc(target) or "").split("\n\n")[0].split()),
        "source": getattr(target, "source", "-"),
        "knobs": [
            {
                "name": prefix + knob.name,
                "type": _format_type(hints[knob.name], str(knob.type)),
                "default": find_default(knob),
                "about": sentences.get(knob.name, ""),
            }
            for knob in dataclasses.fields(target)
        ],
    }


def _format_type(hint: Any, name: str) -> str:
    """Return the choices of a knob that has some, else the name of its type."""
    return " | ".join(get_args(hint)) if get_origin(hint) is Literal else name


def find_default(knob: dataclasses.Field[Any]) -> Any:
    """Return the default value of a knob, which JSON can hold."""
    return knob.default if knob.default_factory is dataclasses.MISSING else knob.default_factory()


def read_attributes(target: type[Any]) -> dict[str, str]:
    """Return the sentence of each field in the ``Attributes`` sections of a class and its base classes."""
    sentences: dict[str, str] = {}
    for base in reversed(target.__mro__):
        if dataclasses.is_dataclass(base):
            docstring = inspect.cleandoc(base.__doc__ or "").replace("``", "")
            sentences |= _parse_attributes(docstring)
    return sentences


def _parse_attributes(docstring: str) -> dict[str, str]:
    """Return name to sentence of the lines ``name: sentence`` or ``name, name: sentence`` under ``Attributes:``."""
    section = re.search(r"^Attributes\b[^\n]*:\n((?:[ ]+[^\n]*\n?|\n)+)", docstring, re.MULTILINE)
    sentences: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(section[1]).splitlines() if section else []:
        entry = re.match(r"(\w+(?:, \w+)*): +(.*)", line)
        if entry:
            names = entry[1].split(", ")
            sentences |= dict.fromkeys(names, entry[2])
        else:
            for name in names:
                sentences[name] = f"{sentences[name]} {line.strip()}".strip()
    return sentences
