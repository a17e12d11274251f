"""A node said once: what it takes, what it gives, what it does. `v1` and `v3` turn it into ComfyUI's classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["int", "float", "string", "boolean", "combo", "socket"]


@dataclass(frozen=True)
class Input:
    """One input of a node.

    Attributes:
        name: of the parameter of the node's function.
        kind: of widget; a ``socket`` takes the output of another node.
        type: of a socket, such as ``MODEL``.
        default, low, high, step: of numbers.
        options: of a combo.
        multiline: of a string.
        optional: a socket that may stay empty.
        tooltip: one line.
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
    multiline: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Output:
    """One output: its type and its name."""

    type: str
    name: str


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        id: never changes: saved workflows name it.
        title, category, description: what a person reads.
        run: called with the inputs by name; gives the outputs in order.
        files: inputs that name files: ComfyUI runs the node again when one of them changed.
    """

    id: str
    title: str
    category: str
    description: str
    inputs: Sequence[Input]
    outputs: Sequence[Output]
    run: Callable[..., tuple[Any, ...]]
    files: tuple[str, ...] = ()

    def fingerprint(self, inputs: Mapping[str, Any]) -> list[Any]:
        """What else than its inputs decides what the node gives."""
        paths = [Path(str(inputs.get(name) or "")) for name in self.files]
        return [p.stat().st_mtime_ns if p.is_file() else None for p in paths]


def socket(name: str, kind: str, tooltip: str, *, optional: bool = False) -> Input:
    """An input for another node's output."""
    return Input(name, "socket", tooltip, type=kind, optional=optional)


def whole(name: str, default: int, low: int, high: int, tooltip: str, step: int = 1) -> Input:
    """A whole number."""
    return Input(name, "int", tooltip, default, low=low, high=high, step=step)


def number(name: str, default: float, low: float, high: float, step: float, tooltip: str) -> Input:
    """A real number."""
    return Input(name, "float", tooltip, default, low=low, high=high, step=step)


def text(name: str, default: str, tooltip: str, *, multiline: bool = False) -> Input:
    """A text."""
    return Input(name, "string", tooltip, default, multiline=multiline)


def choice(name: str, options: Sequence[str], default: str, tooltip: str) -> Input:
    """One of some names."""
    return Input(name, "combo", tooltip, default, options=tuple(options))
