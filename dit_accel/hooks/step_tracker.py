"""Track the denoising loop: the run, the step and the branch of each forward."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.hooks import CacheContext
from torch import Tensor


@dataclass(frozen=True)
class StepInfo:
    """Position of one forward in the denoising loop.

    Attributes:
        step: Denoising step, counted from 0.
        num_steps: Number of steps; None if unknown.
        branch: Name of the forward within the step.
        new_run: True if the forward begins a new run.
    """

    step: int
    num_steps: int | None
    branch: str
    new_run: bool


class StepTracker:
    """Tells steps, branches and runs apart. It never only counts calls, because caches skip calls.

    The sources of a step, in this order:

    1. The cache context: its name, and its step number if the pipeline gives one.
    2. The scheduler: its step index, or the position of the timestep among its timesteps.
    3. A change of the timestep argument, because some pipelines step copies of their scheduler.

    A run is new in any of these cases:

    - The scheduler holds another ``timesteps`` object than before.
    - The step goes backwards, or a numbered step comes to the same branch twice.
    - The timestep of a bare transformer turns back.
    - Copies of a scheduler are stepped, and the last token's timestep is back at the first of the run.
    """

    def __init__(self, pipe: Any | None) -> None:
        self._pipe: weakref.ref[Any] | None = None
        self._timesteps: weakref.ref[Tensor] | None = None
        self._last_timestep: Any = None
        self._first: Any = None  # timestep of the last token when the run began
        self._rises: bool | None = None  # direction of a bare transformer's timestep
        self._step = -1
        self._calls_in_step = 0
        self._branches: set[str] = set()
        self.num_steps: int | None = None  # of the latest forward
        self.follow(pipe)

    def follow(self, pipe: Any | None) -> None:
        """Set the pipeline that runs now, or None. Another pipeline begins a new run."""
        if pipe is not (self._pipe() if self._pipe else None):
            self._pipe = weakref.ref(pipe) if pipe is not None else None
            self.reset()

    def update(self, context: CacheContext | None, timestep: Any) -> StepInfo:
        """Return the position of the forward that begins now."""
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

    def reset(self) -> None:
        """Forget the run, so that the next forward begins a new one."""
        self._timesteps, self._last_timestep, self._rises, self._step = None, None, None, -1

    def _is_repeated(self, context: CacheContext | None, step: int) -> bool:
        """Return True if a numbered step reaches the same branch again, after an interruption."""
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
            return int(context.step_index)
        if hasattr(scheduler, "step_index"):
            if _is_not_stepped(scheduler):
                return self._step_by_change(timestep, new_run)
            index = scheduler.step_index
            return int(scheduler.begin_index if index is None else index)
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
        """Return True if a pipeline begins anew, such as with the next chunk of a long video.

        Tokens before the last may be clean by then.
        """
        left = bool(_of_last_token(last) != self._first)
        return left and bool(_of_last_token(value) == self._first)

    def _turns_back(self, last: Any, value: Any) -> bool:
        """Return True if the timestep changed its direction."""
        rises = bool(_mean(value) > _mean(last))
        before, self._rises = self._rises, rises
        if before in (None, rises):
            return False
        self._rises = None
        return True

    def _num_steps(self, context: CacheContext | None, scheduler: Any) -> int | None:
        if context is not None and context.num_inference_steps is not None:
            return int(context.num_inference_steps)
        reported = getattr(self._pipe() if self._pipe else None, "num_timesteps", None)
        if _is_not_stepped(scheduler) and isinstance(reported, int):
            return reported  # copies of the scheduler may step one token after the other
        timesteps = getattr(scheduler, "timesteps", None)
        return len(timesteps) if timesteps is not None else None


def _position(timestep: Any, timesteps: Tensor | None) -> int | None:
    """Return the index of a timestep among a scheduler's; None if it is not unique or tokens differ."""
    if timestep is None or timesteps is None:
        return None
    values = torch.as_tensor(timestep, device=timesteps.device).detach().flatten()
    same = (timesteps.to(values.dtype) == values[0]) & (values == values[0]).all()
    positions = same.nonzero()
    return int(positions) if len(positions) == 1 else None


def _is_not_stepped(scheduler: Any) -> bool:
    """Return True if the scheduler counts steps but has not been stepped yet, or only copies of it have."""
    if not hasattr(scheduler, "step_index"):
        return False
    return scheduler.step_index is None and getattr(scheduler, "begin_index", None) is None


def _of_last_token(timestep: Any) -> Any:
    return timestep.flatten()[-1] if isinstance(timestep, Tensor) else timestep


def _mean(timestep: Any) -> Any:
    return timestep.float().mean() if isinstance(timestep, Tensor) else timestep


def is_same(last: Any, value: Any) -> bool:
    """Return True if two timesteps are equal for all tokens.

    Only the first sample counts if the shapes differ, because forwards of one step may differ in their batch.
    """
    if isinstance(last, Tensor) and isinstance(value, Tensor) and last.shape != value.shape:
        return bool(last.flatten()[0] == value.flatten()[0])
    return bool((last == value).all()) if isinstance(value, Tensor) else bool(last == value)
