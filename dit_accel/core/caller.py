"""Find the line of a program that called a pipeline, for warnings from inside of it."""

from __future__ import annotations

import sys

LIBRARIES = frozenset(
    (
        *("dit_accel", "dit_accel_eval", "dit_accel_kernels", "dit_accel_pipelines"),
        *("accelerate", "contextlib", "diffusers", "peft", "torch"),
    )
)
"""Modules between a program and the warning: this package, and what calls its hooks."""


def caller_stacklevel() -> int:
    """Return the ``stacklevel`` with which `warnings.warn` names the line that called a pipeline.

    It is for the function that calls this one. Without a frame outside of `LIBRARIES` it is 1, the line of the warning.

    Example:
        >>> warnings.warn("one call ran dense", stacklevel=caller_stacklevel())
    """
    frame = sys._getframe(1)
    level = 1
    while frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        if frame.f_back is None:
            return 1
        frame, level = frame.f_back, level + 1
    return level
