"""Declarations of nodes: their inputs, outputs and functions. `node_classes` makes ComfyUI's classes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from dit_accel.errors import InvalidSettings

Kind = Literal["int", "float", "string", "boolean", "combo", "dynamic", "socket"]


@dataclass(frozen=True)
class Input:
    """One input of a node.

    Attributes:
        name: Name of the parameter of the node's function. Saved workflows contain it.
        kind: Kind of widget, or ``"socket"`` for another node's output. ``"dynamic"`` is a combo whose choice adds
            inputs, which old versions of ComfyUI lack.
        tooltip: One sentence for people.
        default: Initial value of a widget.
        type: Type of a socket, such as ``MODEL``.
        low, high, step: Range of a number, and the step of its widget.
        options: Choices of a combo.
        choices: Inputs that each choice of a dynamic combo adds.
        multiline: True if a string can have several lines.
        optional: True if saved workflows can lack the input. It then has its default, or nothing comes from a socket.
        advanced: True if the page hides the widget until it is asked for.
    """

    name: str
    kind: Kind
    tooltip: str
    default: Any = None
    type: str = ""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    options: tuple[str, ...] = ()
    choices: Mapping[str, tuple[Input, ...]] = field(default_factory=dict)
    multiline: bool = False
    optional: bool = False
    advanced: bool = False


@dataclass(frozen=True)
class Output:
    """Type and name of one output of a node."""

    type: str
    name: str


@dataclass(frozen=True)
class Node:
    """Declaration of a node.

    Attributes:
        id: Class name in saved workflows. It never changes.
        title, category, description: Texts for people.
        inputs, outputs: Inputs and outputs in the order of the page.
        run: Function that takes the inputs by name and returns the outputs in order.
        files: Names of the inputs that name files. ComfyUI runs the node again if one of the files changed.
        aliases: Other words by which people search for the node.
        check: Function that takes some of the inputs by name and raises `InvalidSettings`. It runs when a workflow is
            queued, so a wrong text costs no time.
        shows: Index of the output that the page shows on the node, or None.
    """

    id: str
    title: str
    category: str
    description: str
    inputs: Sequence[Input]
    outputs: Sequence[Output]
    run: Callable[..., tuple[Any, ...]]
    files: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    check: Callable[..., object] | None = None
    shows: int | None = None

    @property
    def is_dynamic(self) -> bool:
        """Return True if a choice on the node adds inputs."""
        return any(declared.kind == "dynamic" for declared in self.inputs)

    @property
    def checked_inputs(self) -> tuple[str, ...]:
        """Return the names of the inputs that ``check`` takes."""
        return () if self.check is None else tuple(signature(self.check).parameters)

    def find_error(self, inputs: Mapping[str, Any]) -> str | None:
        """Return what is wrong with the inputs, or None if they are valid or if some are not known yet."""
        if self.check is None or any(value is None for value in inputs.values()):
            return None
        try:
            self.check(**inputs)
        except InvalidSettings as error:
            return str(error)
        return None

    def fingerprint(self, inputs: Mapping[str, Any]) -> list[int | None]:
        """Return the modification times of the input files in nanoseconds, with None for a missing file."""
        paths = [Path(str(inputs.get(name) or "")) for name in self.files]
        return [path.stat().st_mtime_ns if path.is_file() else None for path in paths]


def socket_input(name: str, type: str, tooltip: str, *, optional: bool = False) -> Input:
    """Declare an input for another node's output."""
    return Input(name, "socket", tooltip, type=type, optional=optional)


def int_input(name: str, default: int, low: int, high: int, tooltip: str, step: int = 1) -> Input:
    """Declare an integer input."""
    return Input(name, "int", tooltip, default, low=low, high=high, step=step)


def float_input(
    name: str,
    default: float,
    low: float,
    high: float,
    step: float,
    tooltip: str,
    *,
    advanced: bool = False,
) -> Input:
    """Declare an input for a real number."""
    return Input(name, "float", tooltip, default, low=low, high=high, step=step, advanced=advanced)


def text_input(
    name: str, default: str, tooltip: str, *, multiline: bool = False, advanced: bool = False
) -> Input:
    """Declare a text input."""
    return Input(name, "string", tooltip, default, multiline=multiline, advanced=advanced)


def choice_input(
    name: str, options: Sequence[str], default: str, tooltip: str, *, advanced: bool = False
) -> Input:
    """Declare a choice between names."""
    return Input(name, "combo", tooltip, default, options=tuple(options), advanced=advanced)
