"""Turn values from files and from the command line into dataclasses; errors name the key."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from dit_accel.errors import InvalidSettings

# pydantic names the members of a union in an error's location; they are not keys.
_UNION_MEMBERS = ("float", "int", "str", "bool", "none")


def parse_dataclass(target: Any, values: Mapping[str, Any], what: str) -> Any:
    """Return an instance of a dataclass built from plain values.

    Args:
        target: the dataclass.
        values: field name to value.
        what: name of such a field in error texts, for example ``"svg2 knob"``.

    Raises:
        InvalidSettings: for an unknown key, a value of the wrong type, or one that the dataclass refuses.
    """
    from pydantic import TypeAdapter, ValidationError

    known = [f.name for f in dataclasses.fields(target)]
    for key in values:
        if key not in known:
            raise InvalidSettings(f"unknown {what} {key!r}: choose from {', '.join(known)}")
    try:
        return TypeAdapter(target).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        location = _format_location(first["loc"])
        got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
        raise InvalidSettings(
            f"{what} {location + ': ' if location else ''}{message}{got}"
        ) from None


def _format_location(location: tuple[int | str, ...]) -> str:
    """Return a location as text such as ``rules[0].layers``."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[a-z_0-9]+", part) and part not in _UNION_MEMBERS:
            text += f".{part}" if text else part
    return text


def parse_knobs(target: Any, texts: Mapping[str, Any], what: str) -> Any:
    """Return an instance of a dataclass built from texts of the command line.

    ``none`` is None; a sequence is written ``8,2`` or ``8+2``.

    Raises:
        InvalidSettings: as `parse_dataclass`.
    """
    types = get_type_hints(target)
    values = {name: _parse_knob(text, types.get(name)) for name, text in texts.items()}
    return parse_dataclass(target, values, what)


def _parse_knob(value: Any, kind: Any) -> Any:
    if not isinstance(value, str):
        return value
    kinds = (kind, *get_args(kind))
    if type(None) in kinds and value.lower() == "none":
        return None
    parts = [part for part in re.split("[,+]", value) if part]
    if any(get_origin(k) is tuple for k in kinds) and (len(parts) > 1 or float not in kinds):
        return parts
    return value


def parse_integers(name: str, text: str) -> list[int]:
    """Return the integers of a text such as ``0,1,2``.

    Args:
        name: name of the option in error texts.
        text: integers separated by commas.

    Raises:
        InvalidSettings: for any other text.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidSettings(f"{name} takes integers separated by commas, got {text!r}") from None
