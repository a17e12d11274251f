"""Turn values from files and from the command line into dataclasses; errors name the key."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from dit_accel.errors import InvalidSettings

# pydantic names the members of a union in an error's location; they are not keys.
_UNION_MEMBERS = ("float", "int", "str", "bool", "none")
LARGEST_NUMBER = 2**63


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
        built = TypeAdapter(target).validate_python(dict(values))
        _check_numbers(values, what)
        _check_numbers({name: getattr(built, name) for name in values}, what)
        return built
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        location = _format_location(first["loc"])
        got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
        raise InvalidSettings(
            f"{what} {location + ': ' if location else ''}{message}{got}"
        ) from None


def _check_numbers(values: Mapping[str, Any], what: str) -> None:
    """Refuse numbers that are not finite, or that do not fit into 64 bits."""
    for name, value in values.items():
        for number in _iterate_numbers(value):
            if not abs(number) < LARGEST_NUMBER:
                raise InvalidSettings(
                    f"{what} {name}: a number must be finite and below 2**63, got {number:g}"
                )


def _iterate_numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _iterate_numbers(vars(value))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _iterate_numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _iterate_numbers(item)


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
    """Return the integers of a text such as ``0,1,2``: indices or seeds.

    Args:
        name: name of the option in error texts.
        text: integers from 0 to 2**63 - 1, separated by commas.

    Raises:
        InvalidSettings: for any other text.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidSettings(f"{name} takes integers separated by commas, got {text!r}") from None
    for number in numbers:
        if not 0 <= number < LARGEST_NUMBER:
            raise InvalidSettings(f"{name} takes integers in [0, 2**63), got {number}")
    return numbers
