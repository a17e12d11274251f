"""The setting of a measurement: its device and sizes, and how a call is timed there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from dit_accel_eval.bench.cases import SHAPES, Shape

Row: TypeAlias = dict[str, Any]
"""Figures of one case by name."""
Cases: TypeAlias = dict[str, Callable[[], Row]]
"""The cases of a part by name."""

TINY = Shape(1, 130, 64)
WARM_HEADS = 2


@dataclass(frozen=True)
class Setting:
    """The device and the size of a measurement.

    Attributes:
        device: ``cuda``, or ``cpu`` for Triton's interpreter.
        tiny: Run all cases at a tiny size.
        warm: Compile only: two heads instead of all, and one call instead of many.
    """

    device: str = "cuda"
    tiny: bool = False
    warm: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of inputs. The interpreter has no right bfloat16 products."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def shape(self, name: str) -> Shape:
        """Return a shape of `SHAPES`, as small as this setting asks for."""
        shape = SHAPES[name]
        if self.tiny:
            return TINY
        return Shape(WARM_HEADS, shape.tokens, shape.head_dim) if self.warm else shape

    def wait(self) -> None:
        """Wait for the device, so that its faults are raised here."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def time_call(
    call: Callable[[], object], setting: Setting, seconds: float = 0.25, least: int = 3
) -> tuple[float, float]:
    """Return the median of a warm call in milliseconds, and the share by which two medians differ.

    Args:
        call: function to time.
        setting: where it runs.
        seconds: time to measure for.
        least: number of calls of each half, at least.
    """
    call()
    setting.wait()
    if setting.warm or setting.device == "cpu":
        start = time.perf_counter()
        call()
        setting.wait()
        return 1e3 * (time.perf_counter() - start), 0.0
    first = _event_milliseconds(call, 1)[0]
    count = min(200, max(least, round(500 * seconds / max(first, 1e-3))))
    halves = [statistics.median(_event_milliseconds(call, count)) for _ in range(2)]
    return statistics.mean(halves), abs(halves[0] - halves[1]) / min(halves)


def _event_milliseconds(call: Callable[[], object], count: int) -> list[float]:
    """Return the times of calls by CUDA events."""
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(count)
    ]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def check(error: float, limit: float) -> Row:
    """Return a row of an error and its limit. NaN fails."""
    return {"error": error, "limit": limit, "ok": error <= limit}
