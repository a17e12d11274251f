"""The sparse attention methods by name. To add one: a file beside these, and a line in METHODS."""

from dit_accel.methods.base import Method
from dit_accel.methods.dense import Dense
from dit_accel.methods.svg2 import SVG2
from dit_accel.methods.svg_ear import SVGEar

METHODS: dict[str, type[Method]] = {"dense": Dense, "svg2": SVG2, "svg-ear": SVGEar}


def find_method(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ValueError: for a name that is not in the table.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "SVG2", "Dense", "Method", "SVGEar", "find_method"]
