"""Widgets for the knobs of each method, from the types, defaults and sentences of its own docs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dit_accel.comfyui.node_declaration import Input
from dit_accel.core.knob_docs import find_default, read_attributes
from dit_accel.methods import METHODS, find_method

KNOB_LIMIT = 1 << 20
"""Range of the widgets. The method checks the values."""


def method_input(name: str, default: str, tooltip: str) -> Input:
    """Declare a choice of a method that brings the widgets of the method's knobs."""
    choices = {method: tuple(knob_inputs(method)) for method in METHODS}
    return Input(name, "dynamic", tooltip, default, options=tuple(METHODS), choices=choices)


def knob_inputs(method: str) -> list[Input]:
    """Return the widgets of a method's knobs."""
    kind = find_method(method)
    hints, sentences = get_type_hints(kind), read_attributes(kind)
    return [
        _knob_input(knob.name, hints[knob.name], find_default(knob), sentences[knob.name])
        for knob in dataclasses.fields(kind)
    ]


def _knob_input(name: str, hint: Any, default: Any, tooltip: str) -> Input:
    if get_origin(hint) is Literal:
        return Input(name, "combo", tooltip, default, options=get_args(hint))
    if hint is bool:
        return Input(name, "boolean", tooltip, default)
    if hint is int:
        return Input(name, "int", tooltip, default, low=0, high=KNOB_LIMIT, step=1)
    if hint is float:
        return Input(name, "float", tooltip, default, low=0.0, high=KNOB_LIMIT, step=0.01)
    return Input(name, "string", tooltip, format_knob(default))


def format_knob(value: Any) -> str:
    """Return a knob's value as the text that a profile's knobs are read from."""
    if isinstance(value, list | tuple):
        return ",".join(map(format_knob, value))
    return "none" if value is None else str(value)


def changed_knobs(values: Mapping[str, Any], method: str) -> list[str]:
    """Return texts ``KNOB=VALUE`` for the values that differ from a method's defaults.

    Args:
        values: Values of the widgets by name of the knob.
        method: Name of the method.
    """
    defaults = {knob.name: knob.default for knob in knob_inputs(method)}
    return [
        f"{name}={format_knob(value)}"
        for name, value in values.items()
        if name not in defaults or value != defaults[name]
    ]
