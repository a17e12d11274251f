"""Check the levers of a profile against a model and its placement before any weights are loaded."""

from __future__ import annotations

import diffusers

from dit_accel.core.caches import MagCache
from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.settings import RenderSettings, build_profile
from dit_accel.hooks.linears import check_torchao
from dit_accel.hooks.step_cache import check_cache_kind
from dit_accel.runtime.cache_checks import check_experts, check_ratios
from dit_accel_pipelines import COMPONENTS


def check_levers(settings: RenderSettings, card: ModelCard) -> None:
    """Check that the levers of a render go with its model, its device and its offloading.

    Raises:
        InvalidSettings: With the lever that does not, and the reason.
    """
    profile = build_profile(settings)
    cache, linears = profile.cache, profile.linears
    model = getattr(diffusers, card.transformer_class)
    if cache is not None:
        check_cache_kind(model, cache, card.family)
        check_experts(cache, COMPONENTS[: card.transformers])
    if isinstance(cache, MagCache):
        check_ratios(cache, dict.fromkeys(COMPONENTS[: card.transformers]))
        if settings.steps is not None and cache.measured_steps not in (None, settings.steps):
            raise InvalidSettings(
                f"the magcache ratios were measured in {cache.measured_steps} steps, and --steps is "
                f"{settings.steps}: call calibrate_mag_cache for it"
            )
    if profile.compile is not None and not getattr(model, "_repeated_blocks", None):
        raise InvalidSettings(
            f"{model.__name__} names no repeated blocks, so they cannot be compiled: leave compile out"
        )
    if linears is not None:
        check_torchao(linears)
        if settings.offload in ("group", "sequential"):
            raise InvalidSettings(
                f"linears cannot be changed with --offload {settings.offload}, because copies of the weights would "
                "stay as they are: use --offload model or none"
            )
        if linears.kind == "fp8-dynamic" and settings.device == "cpu":
            raise InvalidSettings(
                "linears fp8-dynamic needs a CUDA device: use fp8-weights or int8-dynamic"
            )
