"""Keep what runs apart: each pipeline, and each thread with a bare transformer, has its own state."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_accel.errors import RunFailed
from dit_accel.hooks.step_tracker import StepTracker

if TYPE_CHECKING:
    from dit_accel.guidance.perturbed_branch import PerturbedBranch
    from dit_accel.runtime.run_state import Forward, Run

BUSY = (
    "two threads run the same pipeline at the same time, but its scheduler holds the state of one run: give each "
    "thread a pipeline and a scheduler of its own, which may share the transformer"
)


@dataclass
class RunContext:
    """State of what one pipeline, or one thread with a bare transformer, runs.

    Attributes:
        tracker: Tells its steps, branches and runs apart.
        run: State of its latest run.
        guidance: State of perturbed guidance in that run, or None.
        forward: State of the forward that runs now, or None.
        thread: Thread that runs this forward, or None.
    """

    tracker: StepTracker
    run: Run
    guidance: PerturbedBranch | None = None
    forward: Forward | None = None
    thread: int | None = None

    def reset(self) -> None:
        """Free the state of the run. Its counters stay for the report."""
        self.run.free()
        self.tracker.reset()
        if self.guidance is not None:
            self.guidance.forget()


@dataclass
class _Current(threading.local):
    """Contexts of one thread: of its bare transformer, of its running forward and of its latest run."""

    bare: RunContext | None = None
    running: RunContext | None = None
    latest: RunContext | None = None


@dataclass
class RunContexts:
    """The contexts of one session.

    Attributes:
        make: Function that makes the context of a pipeline, or of a bare transformer for None.
    """

    make: Callable[[Any | None], RunContext]
    # By the pipeline's id, because objects with a scheduler may have no hash.
    _by_pipe: dict[int, tuple[weakref.ref[Any], RunContext]] = field(default_factory=dict)
    _current: _Current = field(default_factory=_Current)
    _latest: RunContext | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, pipe: Any | None) -> RunContext:
        """Return the context of a pipeline, or of this thread's bare transformer for None."""
        if pipe is None:
            if self._current.bare is None:
                self._current.bare = self.make(None)
            return self._current.bare
        with self._lock:
            if id(pipe) not in self._by_pipe:
                contexts, number = self._by_pipe, id(pipe)
                gone = weakref.ref(pipe, lambda _: contexts.pop(number, None))
                contexts[number] = gone, self.make(pipe)
            return self._by_pipe[id(pipe)][1]

    @property
    def latest(self) -> RunContext:
        """Return the context of this thread's latest run, or else of the latest run of all threads."""
        context = self._current.latest or self._latest
        if context is None:
            context = self._latest = self.find(None)
        return context

    @property
    def running(self) -> RunContext | None:
        """Return the context whose forward runs in this thread, or None."""
        return self._current.running

    @contextmanager
    def claim(self, pipe: Any | None) -> Iterator[RunContext]:
        """Own the context of a pipeline while a forward runs.

        Raises:
            RunFailed: If another thread runs a forward of the same pipeline.
        """
        context, this_thread = self.find(pipe), threading.get_ident()
        with self._lock:
            if context.thread not in (None, this_thread):
                raise RunFailed(BUSY)
            context.thread = this_thread
            self._latest = context
        self._current.running = self._current.latest = context
        try:
            yield context
        finally:
            context.forward = context.thread = None
            self._current.running = None

    def free(self) -> None:
        """Free the state of every run."""
        of_pipes = [context for _, context in list(self._by_pipe.values())]
        for context in [*of_pipes, self._current.bare, self._latest]:
            if context is not None:
                context.run.free()
