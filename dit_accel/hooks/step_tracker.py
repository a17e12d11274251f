"""Track the denoising loop: the run, the step and the branch of each forward."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.hooks import CacheContext
from torch import Tensor

from dit_accel.hooks.streams import StreamTracker


@dataclass(frozen=True)
class StepInfo:
    """Position of one forward in the denoising loop.

    Attributes:
        step: Denoising step, counted from 0 over the steps that run.
        num_steps: Number of steps that run; None if unknown.
        branch: Name of the forward within the step.
        new_run: True if the forward begins a new run.
        skipped: Number of the scheduler's steps before the first that runs. A strength below 1 skips steps.
        stream: Identifier of the forwards, one a step, that denoise the same sample in the same branch.
    """

    step: int
    num_steps: int | None
    branch: str
    new_run: bool
    skipped: int = 0
    stream: Hashable = ("call0", 0)

    def in_schedule(self) -> tuple[int, int | None]:
        """Return the step and the number of steps, with the skipped steps counted. They tell the noise level."""
        count = None if self.num_steps is None else self.num_steps + self.skipped
        return self.step + self.skipped, count


class StepTracker:
    """Tells steps, branches and runs apart. It never only counts calls, because caches skip calls.

    The sources of a step, in this order:

    1. The cache context: its name, and its step number if the pipeline gives one.
    2. The scheduler: its step index, or the position of the timestep among its timesteps.
    3. A change of the timestep argument, because some pipelines step copies of their scheduler.

    A run is new in any of these cases:

    - The scheduler holds another ``timesteps`` object than before.
    - The step goes backwards.
    - The timestep of a bare transformer turns back.
    - Copies of a scheduler are stepped, and the last token's timestep is back at the first of the run.

    Clips of a model of one step that share a bare transformer are one run, in which each clip has its own stream.
    """

    def __init__(self, pipe: Any | None) -> None:
        self._pipe: weakref.ref[Any] | None = None
        self._timesteps: weakref.ref[Tensor] | None = None
        self._last_timestep: Any = None
        self._first: Any = None  # timestep of the last token when the run began
        self._rises: bool | None = None  # direction of a bare transformer's timestep
        self._step = -1
        self._calls_in_step = 0
        self._skipped = 0
        self._stepped = False  # True once the scheduler was seen stepped in this run
        self.streams = StreamTracker()
        self.num_steps: int | None = None  # of the latest forward
        self.follow(pipe)

    def follow(self, pipe: Any | None) -> None:
        """Set the pipeline that runs now, or None. Another pipeline begins a new run."""
        if pipe is not (self._pipe() if self._pipe else None):
            self._pipe = weakref.ref(pipe) if pipe is not None else None
            self.reset()

    def update(
        self,
        context: CacheContext | None,
        timestep: Any,
        latents: Tensor | None = None,
        *,
        own_loop: bool = False,
    ) -> StepInfo:
        """Return the position of the forward that begins now.

        Args:
            context: Cache context of diffusers, or None outside of one.
            timestep: The forward's timestep argument.
            latents: The latents that the forward denoises, or None if they are unknown.
            own_loop: True if no pipeline runs, but a loop of the user's own.
        """
        scheduler = getattr(self._pipe() if self._pipe else None, "scheduler", None)
        new_run = self._other_timesteps(getattr(scheduler, "timesteps", None))
        step = self._step_of(context, scheduler, timestep, new_run)
        new_run = new_run or step < self._step
        if step < 0:  # before the first step of the run so far
            self._skipped, step = self._skipped + step, 0
        self._calls_in_step = 0 if new_run or step != self._step else self._calls_in_step + 1
        self._step = step
        branch = context.name if context is not None else f"call{self._calls_in_step}"
        self.num_steps = self._num_steps(context, scheduler)
        if new_run:
            self.streams.reset()
        if context is None and not own_loop and scheduler is not None:
            stream: Hashable = (branch, 0)  # the order of a pipeline's calls tells them apart
        else:
            name = context.name if context is not None else "call"
            bounded = own_loop or self.num_steps in (None, 1)
            stream = self.streams.find(name, step, latents, bounded=bounded)
        return StepInfo(step, self.num_steps, branch, new_run, self._skipped, stream)

    def reset(self) -> None:
        """Forget the run, so that the next forward begins a new one."""
        self._timesteps, self._last_timestep, self._rises, self._step = None, None, None, -1
        self.streams.reset()

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
        if new_run:
            self._skipped, self._stepped = 0, False
        if context is not None and context.step_index is not None:
            return int(context.step_index)
        if hasattr(scheduler, "step_index"):
            return self._step_by_index(scheduler, timestep, new_run)
        changed = self._step_by_change(timestep, new_run)
        positions = _positions(timestep, getattr(scheduler, "timesteps", None))
        counter = getattr(scheduler, "counter", None)
        if isinstance(counter, int):  # PNDM counts its steps, and visits a timestep twice
            self._skipped = positions[0] if new_run and positions else self._skipped
            return counter or changed
        if len(positions) != 1:
            return changed
        self._skipped = positions[0] if new_run else self._skipped
        return positions[0] - self._skipped

    def _step_by_index(self, scheduler: Any, timestep: Any, new_run: bool) -> int:
        """Return the step of a scheduler that counts, from its first step that runs."""
        if _is_not_stepped(scheduler):
            return self._step_by_change(timestep, new_run)
        begin = getattr(scheduler, "begin_index", None)
        index = int(scheduler.begin_index if scheduler.step_index is None else scheduler.step_index)
        if begin is not None:
            self._skipped = int(begin)
        elif not self._stepped and not new_run and self._step >= 0:
            # The first step ran before the scheduler knew where it begins.
            self._skipped = max(0, index - self._step - 1)
        self._stepped = True
        return index - self._skipped

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
        return len(timesteps) - self._skipped if timesteps is not None else None


def _positions(timestep: Any, timesteps: Tensor | None) -> list[int]:
    """Return the indices of a timestep among a scheduler's; none if tokens differ."""
    if timestep is None or timesteps is None:
        return []
    values = torch.as_tensor(timestep, device=timesteps.device).detach().flatten()
    same = (timesteps.to(values.dtype) == values[0]) & (values == values[0]).all()
    positions: list[int] = same.nonzero().flatten().tolist()
    return positions


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
