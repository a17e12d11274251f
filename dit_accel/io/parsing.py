"""Turn values from files and from the command line into dataclasses; errors name the key."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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
        check_numbers(values, what)
        check_numbers({name: getattr(built, name) for name in values}, what)
        return built
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        location = _format_location(first["loc"])
        got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
        raise InvalidSettings(
            f"{what} {location + ': ' if location else ''}{message}{got}"
        ) from None


def check_numbers(values: Mapping[str, Any], what: str) -> None:
    """Check that all numbers are finite and fit into 64 bits.

    Args:
        values: field name to value.
        what: name of such a field in error texts.

    Raises:
        InvalidSettings: naming the field.
    """
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


def check_types(instance: Any, what: str) -> None:
    """Check the types of a dataclass's fields, which Python does not.

    An integer is a float, a bool is no number, and a list is a tuple.

    Args:
        instance: the dataclass.
        what: name of such a field in error texts, for example ``"schedule"``.

    Raises:
        InvalidSettings: naming the field.
    """
    for name, kind in _field_types(instance.__class__).items():
        value = getattr(instance, name)
        if not _fits(value, kind):
            got = f"the class {value.__name__}" if isinstance(value, type) else repr(value)[:80]
            expected = kind.__name__ if isinstance(kind, type) else re.sub(r"\w+\.", "", str(kind))
            raise InvalidSettings(f"{what} {name} must be {expected}, got {got}")


def check_knobs(instance: Any, what: str) -> None:
    """Check the types and numbers of a frozen dataclass's fields. A list for a tuple becomes one, which has a hash.

    Args:
        instance: the dataclass.
        what: name of such a field in error texts, for example ``"svg2 knob"``.

    Raises:
        InvalidSettings: naming the field.
    """
    check_types(instance, what)
    values = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}
    check_numbers(values, what)
    for name, kind in _field_types(instance.__class__).items():
        if isinstance(values[name], list) and _takes_tuple(kind):
            object.__setattr__(instance, name, tuple(values[name]))


def _takes_tuple(kind: Any) -> bool:
    return any(get_origin(member) is tuple for member in (kind, *get_args(kind)))


@functools.cache
def _field_types(target: Any) -> dict[str, Any]:
    try:
        hints = get_type_hints(target)
    except NameError:  # a class of somebody else imports its types for type checkers only
        return {}
    return {f.name: hints[f.name] for f in dataclasses.fields(target) if f.init}


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:  # which one is checked with a better message
        return isinstance(value, type(arguments[0]))
    if origin is tuple:
        kinds = (
            arguments[:1] * len(value)
            if arguments[-1:] == (...,) and _is_list(value)
            else arguments
        )
        return _is_list(value) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


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
    if _takes_tuple(kind) and (len(parts) > 1 or float not in kinds):
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
