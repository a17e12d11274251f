"""Show what a command does now: bars on a terminal, plain lines in a pipe or a file."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

# Seconds between two looks at a part, and between two lines about it.
TICK = 1.0
BETWEEN_LINES = 10.0
# A quarter of the steps is worth a line, unless the last line is this young.
SHARE = 0.25
SHORTEST = 2.0

T = TypeVar("T")


class Display(Protocol):
    """A display of one part."""

    def show(self, part: Part, *, moved: bool) -> None:
        """Show how far a part is; ``moved`` says that steps were done since."""

    def end(self, part: Part) -> None:
        """Show that a part is over."""


class Part:
    """A part of a run, such as denoising.

    Attributes:
        label: what is done.
        total: number of steps; None if it is unknown.
        unit: what a step is.
        done: number of steps that are done.
        initial: number of steps that were done before the run.
        patience: seconds before it is shown for the first time.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        unit: str = "step",
        initial: int = 0,
        patience: float = 0.0,
        display: Display | None = None,
    ) -> None:
        self.label, self.total, self.unit, self.patience = label, total, unit, patience
        self.initial = self.done = initial
        self._display, self._lock, self._is_over = display, threading.Lock(), threading.Event()
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return how long the part has lasted."""
        return time.monotonic() - self._began

    @property
    def is_over(self) -> bool:
        """Return True after `end`."""
        return self._is_over.is_set()

    def update(self, steps: int = 1) -> None:
        """Count steps that are done."""
        self.done += steps
        self._show(moved=True)

    def begin(self) -> None:
        """Show the part now and then, until `end`."""
        self._show(moved=False)
        if self._display is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        """End the part."""
        with self._lock:
            self._is_over.set()
            if self._display is not None:
                self._display.end(self)

    def _watch(self) -> None:
        while not self._is_over.wait(TICK):
            self._show(moved=False)

    def _show(self, *, moved: bool) -> None:
        with self._lock:
            is_due = self._display is not None and self.seconds >= self.patience
            if is_due and not self._is_over.is_set():
                assert self._display is not None
                self._display.show(self, moved=moved)


class Lines:
    """Shows a part by lines: when it begins, after ten seconds, and after a quarter of its steps.

    Args:
        stream: where the lines go.
        verbose: also show every step and the end.
    """

    def __init__(self, stream: TextIO, *, verbose: bool) -> None:
        self._stream, self._verbose = stream, verbose
        self._last: tuple[float, int] | None = None

    def show(self, part: Part, *, moved: bool) -> None:
        if self._last is None:
            self._write(part, part.label if part.done == part.initial else describe(part))
            return
        seconds, done = self._last
        age = part.seconds - seconds
        share = (part.done - done) / part.total if part.total else 0.0
        is_quarter = share >= SHARE and age >= SHORTEST
        if age >= BETWEEN_LINES or (moved and (is_quarter or self._verbose)):
            self._write(part, describe(part))

    def end(self, part: Part) -> None:
        if self._verbose:
            self._write(part, f"{part.label}: {part.seconds:.1f} s")

    def _write(self, part: Part, text: str) -> None:
        self._last = part.seconds, part.done
        print(text, file=self._stream, flush=True)


class Bar:
    """Shows a part by tqdm's bar, or by its time if the number of its steps is unknown.

    Args:
        stream: a terminal.
        leave: leave the bar there when the part is over.
    """

    def __init__(self, stream: TextIO, *, leave: bool) -> None:
        self._stream, self._leave = stream, leave
        self._bar: tqdm[Any] | None = None

    def show(self, part: Part, *, moved: bool) -> None:
        if self._bar is None:
            self._bar = self._open(part)
            self._bar.start_t -= part.seconds
        self._bar.n = part.done
        self._bar.refresh()

    def end(self, part: Part) -> None:
        if self._bar is not None:
            self._bar.close()

    def _open(self, part: Part) -> tqdm[Any]:
        from tqdm import tqdm

        size = shutil.get_terminal_size()  # tqdm draws nothing on a terminal that tells no size
        return tqdm(
            total=part.total,
            initial=part.initial,
            desc=part.label,
            unit=part.unit,
            file=self._stream,
            leave=self._leave,
            ncols=size.columns - 1,
            nrows=size.lines,
            bar_format=None if part.total else "{desc}: {elapsed}",
        )


class Progress:
    """Shows the parts of a run.

    Args:
        stream: a terminal gets bars, anything else lines; None shows nothing.
        verbose: show every step and the end of each part in lines.
        display: returns the display of a part, in place of the stream.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        verbose: bool = False,
        display: Callable[[], Display] | None = None,
    ) -> None:
        self._stream, self._verbose, self._new_display = stream, verbose, display

    @contextmanager
    def part(
        self,
        label: str,
        total: int | None = None,
        *,
        unit: str = "step",
        initial: int = 0,
        patience: float = 0.0,
    ) -> Iterator[Part]:
        """Show the block as a part, whose `Part.update` counts steps.

        Args:
            label: what is done.
            total: number of steps; None if it is unknown.
            unit: what a step is.
            initial: number of steps that were done before the run.
            patience: show it only if it lasts this many seconds; a bar of such a part goes when it is over.
        """
        display = self._display(leave=patience == 0)
        part = Part(label, total, unit=unit, initial=initial, patience=patience, display=display)
        part.begin()
        try:
            yield part
        finally:
            part.end()

    def iterate(
        self, items: Sequence[T], label: str, *, unit: str, patience: float = 0.0
    ) -> Iterator[T]:
        """Yield items, each of which is a step of a `part`."""
        with self.part(label, len(items), unit=unit, patience=patience) as part:
            for item in items:
                yield item
                part.update()

    def _display(self, *, leave: bool) -> Display | None:
        if self._new_display is not None:
            return self._new_display()
        if self._stream is None:
            return None
        if self._stream.isatty():
            return Bar(self._stream, leave=leave)
        return Lines(self._stream, verbose=self._verbose)


def describe(part: Part) -> str:
    """Return how far a part is, in words."""
    from tqdm import tqdm

    clock: Callable[[float], str] = tqdm.format_interval
    if not part.total:
        return f"{part.label}: {clock(part.seconds)} so far"
    place = f"{part.label}: {part.unit} {part.done} of {part.total}"
    fresh, left = part.done - part.initial, part.total - part.done
    if fresh <= 0 or left <= 0:
        return f"{place}, {clock(part.seconds)} so far"
    return f"{place}, {clock(part.seconds / fresh * left)} left"
