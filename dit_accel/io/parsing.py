"""Values from files and from the command line become dataclasses, with the key in the error."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dit_accel.errors import InvalidSettings


def parsed(target: Any, values: Mapping[str, Any], what: str) -> Any:
    """Build a dataclass from values.

    Raises:
        InvalidSettings: for an unknown key, a value of the wrong type, or one that the dataclass refuses.
    """
    known = [f.name for f in dataclasses.fields(target)]
    for key in values:
        if key not in known:
            raise InvalidSettings(f"unknown {what} {key!r}: choose from {', '.join(known)}")
    try:
        return TypeAdapter(target).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        place = _place(first["loc"])
        given = "" if first["type"] == "value_error" else f", got {first['input']!r}"
        raise InvalidSettings(f"{what} {place + ': ' if place else ''}{message}{given}") from None


def _place(location: tuple[int | str, ...]) -> str:
    """``rules[0].layers`` from a location; pydantic also names the members of unions, which are no keys."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[a-z_0-9]+", part) and part not in _MEMBERS:
            text += f".{part}" if text else part
    return text


_MEMBERS = ("float", "int", "str", "bool", "none")


def parsed_knobs(target: Any, texts: Mapping[str, Any], what: str) -> Any:
    """`parsed` for texts of the command line: ``none``, and sequences as ``8,2`` or ``8+2``."""
    types = get_type_hints(target)
    return parsed(target, {k: _knob(v, types.get(k)) for k, v in texts.items()}, what)


def _knob(value: Any, kind: Any) -> Any:
    if not isinstance(value, str):
        return value
    kinds = (kind, *get_args(kind))
    if type(None) in kinds and value.lower() == "none":
        return None
    parts = [part for part in re.split("[,+]", value) if part]
    if any(get_origin(k) is tuple for k in kinds) and (len(parts) > 1 or float not in kinds):
        return parts
    return value


def whole_numbers(name: str, text: str) -> list[int]:
    """``0,1,2`` as numbers.

    Raises:
        InvalidSettings: for anything else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidSettings(
            f"{name} takes whole numbers separated by commas, got {text!r}"
        ) from None
