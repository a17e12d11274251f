"""Settings of linear layers and of compilation.

Knobs of compilation have the names of torch.compile's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dit_accel.core.caches import check_choice
from dit_accel.errors import InvalidSettings
from dit_accel.io.parsing import check_knobs, parse_dataclass

LinearsKind = Literal["int8-weights", "int8-dynamic", "fp8-weights", "fp8-dynamic", "fp8-storage"]


@dataclass(frozen=True, kw_only=True)
class Linears:
    """Cheaper numbers in the linear layers of the blocks.

    Attributes:
        kind: ``"int8-weights"`` and ``"fp8-weights"`` quantize weights. ``"int8-dynamic"`` and ``"fp8-dynamic"`` also
            quantize the inputs, token by token. These four are torchao's. ``"fp8-storage"`` is diffusers' layerwise
            casting, which stores weights in 8 bits and computes in the model's dtype; it saves memory, not time.
        skip: Linear layers whose name contains one of these texts keep their weights.

    Raises:
        InvalidSettings: If the kind is unknown.
    """

    kind: LinearsKind
    skip: tuple[str, ...] = ("norm",)

    def __post_init__(self) -> None:
        check_knobs(self, "linears")
        check_choice(self, "kind", get_args(LinearsKind))


@dataclass(frozen=True, kw_only=True)
class Compile:
    """Compile the repeated blocks with ``torch.compile``, whose arguments these are.

    Attributes:
        backend: Compiler of the graphs.
        mode: Mode of the compiler, such as ``"max-autotune-no-cudagraphs"``; None for its default.
        fullgraph: True refuses blocks that are more than one graph.
        dynamic: True compiles for all sizes, False for each size, None for a size that changes.
    """

    backend: str = "inductor"
    mode: str | None = None
    fullgraph: bool = False
    dynamic: bool | None = None

    def __post_init__(self) -> None:
        check_knobs(self, "compile")
        if self.mode in ("reduce-overhead", "max-autotune"):
            raise InvalidSettings(
                f"mode {self.mode!r} records CUDA graphs, and attention of this package runs Python in each "
                "call: use max-autotune-no-cudagraphs, or leave the mode out"
            )


def name_levers(levers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the levers of a profile in words, by their sections."""
    return [
        "compiled blocks" if name == "compile" else f"{lever['kind']} {name}"
        for name, lever in levers.items()
    ]


def linears_of(values: Mapping[str, Any]) -> Linears:
    """Return the settings of linear layers from plain values.

    Raises:
        InvalidSettings: If the kind or a key is unknown, or a value does not fit.
    """
    if values.get("kind") not in get_args(LinearsKind):
        kinds = ", ".join(get_args(LinearsKind))
        raise InvalidSettings(f"unknown linears kind {values.get('kind')!r}: choose from {kinds}")
    made: Linears = parse_dataclass(Linears, values, "linears")
    return made


def compile_of(values: Mapping[str, Any]) -> Compile:
    """Return the settings of compilation from plain values; none are the defaults.

    Raises:
        InvalidSettings: If a key is unknown, or a value does not fit.
    """
    made: Compile = parse_dataclass(Compile, values, "compile")
    return made
