"""Show the parts of a pipeline's call: the prompt, denoising and decoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm

from dit_accel.core.progress import Part, Progress


class CallProgress:
    """The part of a call that runs now.

    Args:
        progress: what shows it.
        clip: name of the clip that is rendered, such as ``"dense"``; empty if there is one.
        patience: as in `Progress.part`.
    """

    def __init__(self, progress: Progress, clip: str, patience: float) -> None:
        self._progress, self._clip, self._patience = progress, clip, patience
        self._current = ExitStack()

    def begin(self, name: str, total: int | None = None) -> Part:
        """End the part that runs, and begin another one."""
        self.end()
        label = f"{name} {self._clip}".rstrip()
        part = self._progress.part(label, total, patience=self._patience)
        return self._current.enter_context(part)

    def end(self) -> None:
        """End the part that runs."""
        self._current.close()


class StepBar(tqdm):  # type: ignore[type-arg]
    """Stand-in for the bar that pipelines draw. It counts the steps, and draws nothing.

    Args:
        call: the call that it belongs to.
        iterable: steps to iterate over, or None if the pipeline calls `update`.
        total: number of steps; None takes the length of ``iterable``.
    """

    def __init__(self, call: CallProgress, iterable: Iterable[Any] | None, total: int | None):
        super().__init__(iterable, total=total, disable=True)
        self._call, self._is_open = call, True
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        self._part = call.begin("denoising", total)

    def __iter__(self) -> Iterator[Any]:
        for step in self.iterable:
            yield step
            self.update()
        self.close()

    def update(self, n: float | None = 1) -> None:
        self._part.update(int(n or 0))

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._call.begin("decoding")


@contextmanager
def show_call(
    pipe: Any, progress: Progress, *, clip: str = "", patience: float = 0.0
) -> Iterator[None]:
    """Show the parts of the pipeline's calls in the block.

    Args:
        pipe: the pipeline. Its method ``progress_bar`` is replaced in the block.
        progress: what shows them.
        clip: name of the clip that is rendered, if there are several.
        patience: show a part only if it lasts this many seconds.
    """
    call = CallProgress(progress, clip, patience)

    def progress_bar(iterable: Any = None, total: int | None = None, **_: Any) -> StepBar:
        return StepBar(call, iterable, total)

    call.begin("encoding the prompt of" if clip else "encoding the prompt")
    pipe.progress_bar = progress_bar
    try:
        yield
    finally:
        vars(pipe).pop("progress_bar", None)
        call.end()
