"""Drive one of diffusers' step caches on one transformer.

A cache keeps its state by the name of diffusers' cache context. Two of them, PAB and FasterCache, keep one state for
all branches; here they get one for each context, too. `StepCache.enter` selects the states of a forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.hooks.faster_cache import FasterCacheBlockHook
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from diffusers.hooks.hooks import ModelHook, StateManager
from diffusers.hooks.mag_cache import MagCacheHeadHook
from torch import Tensor, nn

from dit_accel.core.caches import (
    Cache,
    FasterCache,
    FirstBlockCache,
    MagCache,
    SeaCache,
    TaylorSeerCache,
)
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.hooks.added_hooks import AddedHooks
from dit_accel.hooks.install import below_offload_hook
from dit_accel.hooks.root_hook import foreign_states, has_cache_dit
from dit_accel.hooks.streams import find_latents
from dit_accel_pipelines import Family, TokenLayout

REPLACING = (FirstBlockCache, MagCache, SeaCache)
"""Caches that put the last residual of all blocks in their place."""

BETWEEN_BLOCKS = {"wan-vace": "control hints", "wan-animate": "the motion of the face"}
"""Families whose forward adds terms between the blocks, which the residual of the blocks already has."""

TWO_OUTPUTS = ("ltx-2", "minimax-h3")
"""Families with a second output, of sound, that TaylorSeer's lite mode would not extrapolate."""

CONTROL = ("controlnet_block_samples", "controlnet_single_block_samples")
"""Arguments of forwards that are added between the blocks."""


@dataclass
class Position:
    """Position of the forward that runs, for caches that ask: its timestep, and the grid of its tokens."""

    timestep: float | None = None
    layout: TokenLayout | None = None


def takes_cache(model: object, family: Family) -> bool:
    """Return True if a transformer, or its class, takes a cache that replaces all blocks."""
    return hasattr(model, "enable_cache") and family.name not in BETWEEN_BLOCKS


def check_cache_kind(model: type, settings: Cache, family: Family) -> None:
    """Check that a class of transformers takes a cache.

    Raises:
        InvalidSettings: If diffusers has no such cache, the class takes none, or its pipelines do not fit.
    """
    if not hasattr(diffusers, settings.config):
        raise InvalidSettings(
            f"diffusers {diffusers.__version__} has no {settings.config}: install a newer one, or take another cache"
        )
    if not hasattr(model, "enable_cache"):
        raise InvalidSettings(f"{model.__name__} takes no cache of diffusers: leave cache out")
    splits = isinstance(settings, FasterCache) and not settings.is_guidance_distilled
    if splits and family.cfg != "batched":
        raise InvalidSettings(
            f"a fastercache cache splits batches of both halves of guidance, and pipelines of {family.name} run none: "
            "set is_guidance_distilled to true"
        )
    if isinstance(settings, REPLACING) and family.name in BETWEEN_BLOCKS:
        raise InvalidSettings(
            f"a {settings.kind} cache replaces all blocks, and {family.name} adds {BETWEEN_BLOCKS[family.name]} "
            "between them, which would count twice: take taylorseer"
        )
    if is_lite(settings) and family.name in TWO_OUTPUTS:
        raise InvalidSettings(
            f"taylorseer with use_lite_mode extrapolates one output, and {family.name} has a second one for sound: "
            "take another cache"
        )


def is_lite(settings: Cache) -> bool:
    """Return True if a cache is TaylorSeer's lite mode."""
    return isinstance(settings, TaylorSeerCache) and settings.use_lite_mode


def check_control(settings: Cache, arguments: Mapping[str, Any]) -> None:
    """Check that a forward adds nothing between the blocks that a cache would count twice.

    Args:
        settings: The cache.
        arguments: Arguments of the forward by name.

    Raises:
        RunFailed: If it adds the residuals of a ControlNet, and the cache replaces all blocks.
    """
    if isinstance(settings, REPLACING) and any(arguments.get(name) is not None for name in CONTROL):
        raise RunFailed(
            f"a {settings.kind} cache replaces all blocks, and a ControlNet adds terms between them, which would count "
            "twice: take taylorseer"
        )


def check_cache(transformer: nn.Module, settings: Cache, family: Family) -> None:
    """Check that a cache can be enabled on a transformer.

    Raises:
        InvalidSettings: As `check_cache_kind`, or if the transformer has a cache already or compiled modules.
    """
    model = type(transformer).__name__
    check_cache_kind(type(transformer), settings, family)
    if has_cache_dit(transformer):
        raise InvalidSettings(
            f"{model} is cached by cache-dit, and two caches would skip each other's forwards: call "
            "cache_dit.disable_cache first, or leave cache out"
        )
    others = sorted({type(hook).__name__ for hook in foreign_states(transformer)})
    if others or getattr(transformer, "is_cache_enabled", False):
        raise InvalidSettings(
            f"{model} has a cache already ({', '.join(others) or 'enable_cache'}): call disable_cache first"
        )
    if any(module._compiled_call_impl is not None for module in transformer.modules()):
        raise InvalidSettings(
            f"modules of {model} are compiled already, and a cache cannot decide inside their graphs: load the "
            "pipeline again, and set compile in the profile instead"
        )
    if is_lite(settings) and not hasattr(transformer, "proj_out"):
        raise InvalidSettings(
            f"taylorseer with use_lite_mode extrapolates the module proj_out, which {model} does not have: set "
            "use_lite_mode to false, and cache_identifiers"
        )


class StepCache:
    """A cache of diffusers on one transformer.

    Args:
        transformer: The transformer, which `check_cache` accepted.
        component: Its name in the pipeline.
        settings: Kind and knobs of the cache.
        calibrating: True makes MagCache skip nothing and measure its ratios.

    Raises:
        InvalidSettings: If the cache does not know the model's blocks. Nothing is changed then.
    """

    def __init__(
        self, transformer: Any, component: str, settings: Cache, *, calibrating: bool = False
    ) -> None:
        self.component, self.position = component, Position()
        self.ratios: dict[str, list[float]] = {}  # measured ratios of MagCache by context
        self._transformer, self._calibrating = transformer, calibrating
        self._hooks = AddedHooks(transformer)
        self._had_config = "_cache_config" in vars(transformer)
        config = self._config(settings, component)
        try:
            with below_offload_hook(transformer):
                transformer.enable_cache(config)
        except (ValueError, IndexError, AttributeError, TypeError) as error:
            self.disable()
            raise InvalidSettings(
                f"a {settings.kind} cache does not work on {type(transformer).__name__}: {error}"
            ) from None
        self._added = self._hooks.find()
        stateful = [hook for _, hook in self._added if hook._is_stateful]
        if not stateful:
            self.disable()
            raise InvalidSettings(
                f"a {settings.kind} cache matches no module of {type(transformer).__name__}, so it would skip "
                "nothing: take another kind, or change its identifiers"
            )
        # PAB and FasterCache; cache contexts then reach this manager like all others.
        self._single = [hook for hook in stateful if not _managers(hook)]
        for hook in self._single:
            hook.branches = StateManager(type(hook.state))

    def disable(self) -> None:
        """Take the cache off. Forwards are what they were before."""
        self._hooks.remove(self._hooks.find())
        if self._had_config:
            self._transformer._cache_config = None
        else:
            vars(self._transformer).pop("_cache_config", None)

    def reset(self) -> None:
        """Forget the run, so that the next forward is computed."""
        for _, hook in self._added:
            if hook._is_stateful:
                hook.reset_state(self._transformer)
        for hook in self._single:
            hook.branches.reset()

    def enter(self) -> None:
        """Select the states of the cache context that is set now.

        Raises:
            RunFailed: If FasterCache would approximate the first attention of a branch.
        """
        for hook in self._single:
            hook.state = hook.branches.get_state()
            if isinstance(hook, FasterCacheBlockHook) and hook.state.cache is None:
                low, high = hook.timestep_skip_range
                if hook.is_guidance_distilled and low < self._timestep() < high:
                    raise RunFailed(
                        "a fastercache cache has nothing to approximate from in the first step of "
                        f"{type(self._transformer).__name__}: lower spatial_attention_timestep_skip_range"
                    )

    def note(self, context: str) -> None:
        """Keep the ratios that MagCache measured so far in a cache context."""
        for hook in self._find(MagCacheHeadHook) if self._calibrating else ():
            state = hook.state_manager._state_cache.get(context)
            if state is not None:
                self.ratios[context] = list(state.calibration_ratios)

    @contextmanager
    def repeating_decision(self) -> Iterator[None]:
        """Let the forwards of a block decide as the forward before, whose cache context is set now.

        The perturbed forward of guidance is then skipped together with the clean one. A first forward is computed.
        """
        heads = self._find(FBCHeadBlockHook)
        try:
            for head in heads:
                computed = head.state_manager.get_state().should_compute
                head._should_compute_remaining_blocks = lambda _, head=head, computed=computed: (
                    computed or head.state_manager.get_state().tail_block_residuals is None
                )
            yield
        finally:
            for head in heads:
                vars(head).pop("_should_compute_remaining_blocks", None)

    def _find(self, kind: type[ModelHook]) -> list[Any]:
        return [hook for _, hook in self._added if isinstance(hook, kind)]

    def _timestep(self) -> float:
        if self.position.timestep is None:
            raise RunFailed("a cache that follows timesteps needs a forward with a timestep")
        return self.position.timestep

    def _config(self, settings: Cache, component: str) -> Any:
        """Return diffusers' configuration."""
        knobs = settings.knobs()
        parameters = inspect.signature(getattr(diffusers, settings.config)).parameters
        if "current_timestep_callback" in parameters:
            knobs["current_timestep_callback"] = self._timestep
        if "raw_vision_callback" in parameters and not hasattr(
            self._transformer,
            "_run_decoder_stack",  # diffusers' own adapter reads Cosmos 3
        ):
            knobs["raw_vision_callback"] = self._visual_latents
        if isinstance(settings, FasterCache):
            knobs["attention_weight_callback"] = lambda _: (
                0.5
            )  # diffusers' default, without its warning
        if "taylor_factors_dtype" in knobs:
            knobs["taylor_factors_dtype"] = getattr(torch, knobs["taylor_factors_dtype"])
        if isinstance(settings, MagCache):
            ratios = list(settings.mag_ratios.get(component, ()))
            knobs |= {"mag_ratios": ratios or None, "num_inference_steps": len(ratios)}
            if (
                self._calibrating
            ):  # a step count that ends no run, because the end forgets the ratios
                knobs |= {"mag_ratios": None, "num_inference_steps": 2**31, "calibrate": True}
        return getattr(diffusers, settings.config)(**knobs)

    def _visual_latents(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[Tensor] | None:
        """Return the latents of each sample, ``[C, T, H, W]``, or None if their layout is unknown.

        Channels of a condition, which follow those that are denoised, are left out, because they never change.
        """
        signature = inspect.signature(type(module).forward)
        latents = find_latents(signature.bind(module, *args, **kwargs).arguments)
        layout = self.position.layout
        if latents is None:
            return None
        config = getattr(module, "config", {})
        channels, denoised = config.get("in_channels"), config.get("out_channels")
        if latents.dim() == 5:
            first = latents.shape[1] == channels or latents.shape[2] != channels
            samples = latents if first else latents.transpose(1, 2)
            return list(samples[:, :denoised])
        if latents.dim() == 4:
            return list(latents[:, :denoised].unsqueeze(2))
        if latents.dim() == 3 and layout is not None and latents.shape[1] == layout.visual_tokens:
            grid = latents.unflatten(1, (layout.frames, layout.height, layout.width))
            return list(grid.movedim(-1, 1))
        return None


def _managers(hook: ModelHook) -> bool:
    return any(isinstance(value, StateManager) for value in vars(hook).values())
