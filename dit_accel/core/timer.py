"""Measure seconds by name, on the clock of the device."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Timer:
    """Sum of the time spent in named sections.

    On CUDA a section is a pair of events. They are read only when `seconds` is called, so measuring never waits for
    the device.

    Example:
        >>> timer = Timer()
        >>> with timer("kmeans", query.device):
        ...     labels = kmeans(query)
        >>> timer.seconds()
        {'kmeans': 0.012}
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str, device: torch.device) -> Iterator[None]:
        """Measure the body of a ``with`` block under a name."""
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(device)
            begin.record(stream)
            yield
            end.record(stream)
            self._events.append((name, begin, end))
            return
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Return the total seconds of each section so far. On CUDA this waits for the device."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        self._events.clear()
        return dict(self._seconds)

    def reset(self) -> None:
        """Forget all sections."""
        self._seconds.clear()
        self._events.clear()
