"""Measure seconds by name, on the clock of the device."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Timer:
    """Sum of the time spent in named sections.

    On CUDA a section is a pair of events. Events that the device has passed are read on the way, and the others when
    `seconds` is called, so measuring never waits for the device.

    Example:
        >>> timer = Timer()
        >>> with timer("kmeans", query.device):
        ...     labels = kmeans(query)
        >>> timer.seconds()
        {'kmeans': 0.012}
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

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
            # Two at a time catch up with the device, however long a run is.
            for _ in range(2):
                if self._events and self._events[0][2].query():
                    self._read_oldest()
            return
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Return the total seconds of each section so far. On CUDA this waits for the device."""
        while self._events:
            self._events[0][2].synchronize()
            self._read_oldest()
        return dict(self._seconds)

    def _read_oldest(self) -> None:
        name, begin, end = self._events.popleft()
        self._seconds[name] += begin.elapsed_time(end) / 1e3

    def reset(self) -> None:
        """Forget all sections."""
        self._seconds.clear()
        self._events.clear()
