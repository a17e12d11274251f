"""Where the denoising loop is: run, step and branch of a transformer's forward call."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.hooks import CacheContext
from torch import Tensor


@dataclass(frozen=True)
class StepInfo:
    """One forward call: step counted from 0, number of steps where known, and which forward of the
    step it is.
    """

    step: int
    num_steps: int | None
    branch: str
    new_run: bool


class StepTracker:
    """Tells steps, branches and runs apart, never by counting calls alone: caches skip them.

    The cache context comes first (it has a name, and step numbers where the pipeline gives them),
    then the scheduler (its step; where it has none, the place of the timestep among its own), then a change of
    the timestep argument (some pipelines step copies of their scheduler). A run is new when the
    scheduler holds another ``timesteps`` object than before, when the step goes backwards, or when a numbered
    step comes to the same branch twice; of a bare transformer, when the timestep turns back; where copies of a
    scheduler are stepped, when the last token's timestep is back at the run's first.
    """

    def __init__(self, pipe: Any | None) -> None:
        self._pipe: weakref.ref[Any] | None = None
        self._timesteps: weakref.ref[Tensor] | None = None
        self._last_timestep: Any = None
        self._first: Any = None  # the last token's timestep, where the run began
        self._rises: bool | None = None  # where the timestep goes, of a bare transformer
        self._step = -1
        self._calls_in_step = 0
        self._branches: set[str] = set()
        self.num_steps: int | None = None  # of the latest forward
        self.follow(pipe)

    def follow(self, pipe: Any | None) -> None:
        """The pipeline that runs now, or none; another one than before begins a new run."""
        if pipe is not (self._pipe() if self._pipe else None):
            self._pipe = weakref.ref(pipe) if pipe is not None else None
            self.stop()

    def tick(self, context: CacheContext | None, timestep: Any) -> StepInfo:
        """Read the moment of a forward call that begins now."""
        scheduler = getattr(self._pipe() if self._pipe else None, "scheduler", None)
        new_run = self._other_timesteps(getattr(scheduler, "timesteps", None))
        step = self._step_of(context, scheduler, timestep, new_run)
        new_run = new_run or step < self._step or self._is_repeated(context, step)
        self._calls_in_step = 0 if new_run or step != self._step else self._calls_in_step + 1
        self._step = step
        branch = context.name if context is not None else f"call{self._calls_in_step}"
        self._branches = {branch} if self._calls_in_step == 0 else self._branches | {branch}
        self.num_steps = self._num_steps(context, scheduler)
        return StepInfo(step, self.num_steps, branch, new_run)

    def stop(self) -> None:
        """Forget the run: whatever comes next is a new one."""
        self._timesteps, self._last_timestep, self._rises, self._step = None, None, None, -1

    def _is_repeated(self, context: CacheContext | None, step: int) -> bool:
        """Whether a numbered step comes to the same branch again: it was interrupted and begins anew."""
        if context is None or context.step_index is None or step != self._step:
            return False
        return context.name in self._branches

    def _other_timesteps(self, timesteps: Tensor | None) -> bool:
        if timesteps is None:
            return self._step < 0
        if self._timesteps is not None and self._timesteps() is timesteps:
            return False
        self._timesteps = weakref.ref(timesteps)
        return True

    def _step_of(
        self, context: CacheContext | None, scheduler: Any, timestep: Any, new_run: bool
    ) -> int:
        if context is not None and context.step_index is not None:
            return context.step_index
        if hasattr(scheduler, "step_index"):
            if _is_not_stepped(scheduler):
                return self._step_by_change(timestep, new_run)
            index = scheduler.step_index
            return scheduler.begin_index if index is None else index
        changed = self._step_by_change(timestep, new_run)
        position = _position(timestep, getattr(scheduler, "timesteps", None))
        return changed if position is None else position

    def _step_by_change(self, timestep: Any, new_run: bool) -> int:
        value = timestep.detach().clone() if isinstance(timestep, Tensor) else timestep
        last, self._last_timestep = self._last_timestep, value
        if new_run or last is None:
            self._first = _of_last_token(value)
            return 0
        if self._pipe is not None and self._is_back(last, value):
            return 0
        if is_same(last, value):
            return self._step
        return 0 if self._pipe is None and self._turns_back(last, value) else self._step + 1

    def _is_back(self, last: Any, value: Any) -> bool:
        """Whether a pipeline begins anew, such as the next stretch of a long video. Tokens before the last may
        be clean by then.
        """
        left = bool(_of_last_token(last) != self._first)
        return left and bool(_of_last_token(value) == self._first)

    def _turns_back(self, last: Any, value: Any) -> bool:
        """Whether the timestep goes the other way than before, where no scheduler tells of a new run."""
        rises = bool(_mean(value) > _mean(last))
        before, self._rises = self._rises, rises
        if before in (None, rises):
            return False
        self._rises = None
        return True

    def _num_steps(self, context: CacheContext | None, scheduler: Any) -> int | None:
        if context is not None and context.num_inference_steps is not None:
            return context.num_inference_steps
        told = getattr(self._pipe() if self._pipe else None, "num_timesteps", None)
        if _is_not_stepped(scheduler) and isinstance(told, int):
            return told  # of copies, which tokens may step one after the other
        timesteps = getattr(scheduler, "timesteps", None)
        return len(timesteps) if timesteps is not None else None


def _position(timestep: Any, timesteps: Tensor | None) -> int | None:
    """Where a timestep is among a scheduler's; None: nowhere, at several places, or tokens have different ones."""
    if timestep is None or timesteps is None:
        return None
    values = torch.as_tensor(timestep, device=timesteps.device).detach().flatten()
    same = (timesteps.to(values.dtype) == values[0]) & (values == values[0]).all()
    found = same.nonzero()
    return int(found) if len(found) == 1 else None


def _is_not_stepped(scheduler: Any) -> bool:
    """Whether a scheduler that counts steps has none: it will be stepped for the first time, or its copies are."""
    if not hasattr(scheduler, "step_index"):
        return False
    return scheduler.step_index is None and getattr(scheduler, "begin_index", None) is None


def _of_last_token(timestep: Any) -> Any:
    return timestep.flatten()[-1] if isinstance(timestep, Tensor) else timestep


def _mean(timestep: Any) -> Any:
    return timestep.float().mean() if isinstance(timestep, Tensor) else timestep


def is_same(last: Any, value: Any) -> bool:
    """Whether two timesteps are equal: of all tokens, where a pipeline gives each its own; else of the first
    sample, as forwards of one step may differ in their batch.
    """
    if isinstance(last, Tensor) and isinstance(value, Tensor) and last.shape != value.shape:
        return bool(last.flatten()[0] == value.flatten()[0])
    return bool((last == value).all()) if isinstance(value, Tensor) else bool(last == value)
