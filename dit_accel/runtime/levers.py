"""The levers of a session besides attention: applied to its transformers, driven in each forward, and undone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks.hooks import CacheContext
from torch import Tensor, nn

from dit_accel.core.caches import FasterCache, MagCache, SeaCache
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.hooks.compiled_blocks import CompiledBlocks, check_compilable
from dit_accel.hooks.linears import ChangedLinears, check_linears
from dit_accel.hooks.step_cache import StepCache, check_cache, check_control
from dit_accel.runtime.cache_checks import check_experts, check_ratios, check_run

if TYPE_CHECKING:
    from dit_accel.hooks import ForwardCall
    from dit_accel.hooks.step_tracker import StepInfo
    from dit_accel.runtime.profile import Profile
    from dit_accel.runtime.run_contexts import RunContext
    from dit_accel_pipelines import Family


class Levers:
    """The levers of a profile on the transformers of one session.

    They are applied in this order: linear layers, compiled blocks, cache. The session's own hook comes last, so that
    it sees every forward, also those that the cache skips. The undo goes backwards.

    Args:
        profile: The profile.
        family: Family of the transformers.
        replaced: Profile of the sparse attention that the profile's own replaced, or None.
        calibrating: True makes MagCache skip nothing and measure its ratios.
    """

    def __init__(
        self,
        profile: Profile,
        family: Family,
        replaced: Profile | None = None,
        *,
        calibrating: bool = False,
    ) -> None:
        self.profile, self.replaced = profile, replaced
        self._family, self._calibrating = family, calibrating
        self._caches: dict[nn.Module, StepCache] = {}
        self._changed: list[CompiledBlocks | ChangedLinears] = []
        self._owner: RunContext | None = None  # the pipeline whose run the caches hold
        self.timesteps: list[float] = []  # of the last run, if they are known
        self._table: list[float] = []  # timesteps of the pipeline's scheduler
        self._sigmas: list[float] = []

    def check(self, transformers: Mapping[str, nn.Module], scheduler: Any) -> None:
        """Check that everything can be applied, before anything is.

        Args:
            transformers: The transformers by component.
            scheduler: Scheduler of the pipeline, or None.

        Raises:
            InvalidSettings: With the lever that cannot be applied, and the reason.
        """
        cache = self.profile.cache
        if cache is not None:
            check_experts(cache, transformers)
        if isinstance(cache, MagCache) and not self._calibrating:
            check_ratios(cache, transformers)
        if (
            isinstance(cache, SeaCache)
            and scheduler is not None
            and not hasattr(scheduler, "sigmas")
        ):
            raise InvalidSettings(
                f"a seacache cache needs the noise levels of a scheduler, and {type(scheduler).__name__} has none: "
                "take another cache"
            )
        for transformer in transformers.values():
            if cache is not None:
                check_cache(transformer, cache, self._family)
            if self.profile.linears is not None:
                check_linears(transformer, self.profile.linears)
            if self.profile.compile is not None:
                check_compilable(transformer)

    def check_attention(self, attention: Profile) -> None:
        """Check that attention of another verb goes with the levers, by the rules of one profile with both.

        Raises:
            InvalidSettings: With the two settings that do not go together.
        """
        own = self.profile
        dataclasses.replace(attention, cache=own.cache, linears=own.linears, compile=own.compile)

    def apply(self, transformers: Mapping[str, nn.Module]) -> None:
        """Apply the levers. If one fails, those before it are undone.

        Raises:
            InvalidSettings: If a lever cannot be applied.
        """
        profile = self.profile
        try:
            for component, transformer in transformers.items():
                if profile.linears is not None:
                    self._changed.append(ChangedLinears(transformer, profile.linears))
                if profile.compile is not None:
                    self._changed.append(CompiledBlocks(transformer, profile.compile))
                if profile.cache is not None:
                    self._caches[transformer] = StepCache(
                        transformer, component, profile.cache, calibrating=self._calibrating
                    )
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Undo everything. The transformers are what they were."""
        for cache in self._caches.values():
            cache.disable()
        for change in reversed(self._changed):
            change.undo()
        self._caches, self._changed, self._owner = {}, [], None

    def adapt(self, profile: Profile) -> Profile:
        """Return a profile of attention whose calls that decide about skips are dense.

        The noise of sparse attention in the first block would move a threshold on its residual.
        """
        cache = self.profile.cache
        if cache is None or not cache.decides or 0 in profile.schedule.dense_layers:
            return profile
        layers = (0, *profile.schedule.dense_layers)
        schedule = dataclasses.replace(profile.schedule, dense_layers=layers)
        return dataclasses.replace(profile, schedule=schedule)

    @property
    def has_cache(self) -> bool:
        """Return True if forwards read and write the state of a cache."""
        return self.profile.cache is not None

    @property
    def deciding_layers(self) -> int | None:
        """Return the number of attention modules that run in skipped forwards; None if no forward is skipped."""
        cache = self.profile.cache
        return None if cache is None or cache.in_blocks else int(cache.decides)

    def reset(self) -> None:
        """Forget the run in all caches."""
        for cache in self._caches.values():
            cache.reset()

    def end_run(self, context: RunContext) -> None:
        """Forget the run of a pipeline whose call is over.

        Diffusers resets all caches of its transformers then. If they hold the run of another pipeline by now, its next
        forward fails, because it would begin anew in the middle of its run.
        """
        self.reset()
        if self._owner is not None:
            self._owner = context

    @contextmanager
    def driving(self, context: RunContext, call: ForwardCall, pipe: Any) -> Iterator[ForwardCall]:
        """Tell the cache of a transformer about the forward that runs inside.

        Args:
            context: State of the pipeline, whose forward has begun.
            call: The forward.
            pipe: The pipeline that runs it, or None.

        Yields:
            The forward, in a cache context with step and noise level.

        Raises:
            RunFailed: If the cache cannot work in this run.
        """
        cache, forward = self._caches.get(call.module), context.forward
        if cache is None or forward is None:
            yield call
            return
        info = forward.step_info
        if info.new_run or self._owner is None:
            self.reset()
            self._owner = context
            scheduler = getattr(pipe, "scheduler", None)
            self._table = _numbers(getattr(scheduler, "timesteps", None))
            # A loop of one's own may step another scheduler.
            is_own = len(self._table) == info.in_schedule()[1]
            self.timesteps = self._table if is_own else []
            self._sigmas = _numbers(getattr(scheduler, "sigmas", None))
        elif self._owner is not context:
            raise RunFailed(
                "two pipelines run the same transformer at the same time, but a cache holds the state of one run: run "
                "one after the other"
            )
        if self._rests(info.num_steps):
            self.reset()  # a forward without a past is computed
        else:
            cache_settings = None if self._calibrating else self.profile.cache
            check_run(cache_settings, info.num_steps, self.timesteps, pipe)
        if self.profile.cache is not None:
            check_control(self.profile.cache, call.arguments)
        cache.position.layout = forward.layout
        driven_context = self._context_of(call, info, cache)
        with call.entering(driven_context) as driven:
            cache.enter()
            yield driven
            cache.note(driven_context.name)

    @contextmanager
    def perturbing(self, call: ForwardCall, name: str) -> Iterator[None]:
        """Enter the cache context of a perturbed forward, which is skipped together with the clean one before it."""
        cache = self._caches.get(call.module)
        if cache is None:
            with call.in_context(name):
                yield
            return
        settings = self.profile.cache
        if isinstance(settings, FasterCache) and not settings.is_guidance_distilled:
            raise RunFailed(
                "perturbed guidance runs half of a batch, and a fastercache cache splits whole ones: set "
                "is_guidance_distilled to true, or disable guidance"
            )
        clean = call.context.name if call.context is not None else ""
        with cache.repeating_decision(), call.in_context(f"{name} {clean}"):
            cache.enter()
            yield

    def ratios(self) -> dict[str, tuple[float, ...]]:
        """Return the ratios that MagCache measured, in the first branch of each transformer."""
        return {
            cache.component: tuple(next(iter(cache.ratios.values())))
            for cache in self._caches.values()
            if cache.ratios
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the settings of the levers by section, with the number of layers and blocks that they changed."""
        sections = self.profile.levers()
        for name, count, kind in (
            ("linears", "changed", ChangedLinears),
            ("compile", "blocks", CompiledBlocks),
        ):
            if name in sections:
                changes = (change for change in self._changed if isinstance(change, kind))
                sections[name][count] = sum(change.count for change in changes)
        return sections

    def _context_of(self, call: ForwardCall, info: StepInfo, cache: StepCache) -> CacheContext:
        """Return a cache context with step and noise level, and tell the cache its timestep."""
        step = info.step + info.skipped
        given = call.arguments.get("timestep", call.arguments.get("t"))
        settings = self.profile.cache
        if settings is not None and settings.in_blocks:
            cache.position.timestep = _entry(self._table, step)
            if cache.position.timestep is None and given is not None:
                cache.position.timestep = float(torch.as_tensor(given).float().mean())
        sigma = call.context.sigma if call.context is not None else None
        sigma = _entry(self._sigmas, step) if sigma is None else sigma
        if isinstance(settings, SeaCache) and (sigma is None or not 0 <= sigma <= 1):
            raise RunFailed(
                f"a seacache cache needs the noise level of each step in [0, 1], and it is {sigma} here: use a "
                "pipeline with a flow-matching scheduler, or take another cache"
            )
        return CacheContext(_context_name(info), info.step, info.num_steps, given, sigma)

    def _rests(self, num_steps: int | None) -> bool:
        cache = self.profile.cache
        return cache is not None and cache.rests(num_steps)


def _context_name(info: StepInfo) -> str:
    """Return a name for the states of a forward: its branch, and its number among the samples of a step."""
    stream = info.stream
    number = stream[1] if isinstance(stream, tuple) and len(stream) == 2 else 0
    return info.branch if not number else f"{info.branch} {number}"


def _numbers(table: Any) -> list[float]:
    """Return a scheduler's table as numbers, read once in a run."""
    return table.tolist() if isinstance(table, Tensor) else []


def _entry(values: list[float], index: int) -> float | None:
    return values[index] if 0 <= index < len(values) else None
