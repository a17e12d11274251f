"""Check that a step cache fits the transformers of a pipeline, and its runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dit_accel.core.caches import Cache, FasterCache, MagCache
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.hooks.active_pipeline import reported_guidance


def check_experts(cache: Cache, components: Collection[str]) -> None:
    """Check that a cache means the same in a pipeline with several transformers.

    Raises:
        InvalidSettings: If TaylorSeer has a last step, because it counts the forwards of each transformer.
    """
    if len(components) > 1 and getattr(cache, "disable_cache_after_step", None) is not None:
        raise InvalidSettings(
            f"disable_cache_after_step counts the steps of each transformer, and this pipeline has {len(components)}: "
            "leave it out"
        )


def check_ratios(cache: MagCache, components: Mapping[str, Any]) -> None:
    """Check that MagCache has ratios for every transformer.

    Raises:
        InvalidSettings: If they are missing.
    """
    missing = [name for name in components if not cache.mag_ratios.get(name)]
    if missing:
        raise InvalidSettings(
            f"a magcache cache needs mag_ratios of {', '.join(missing)}, which depend on the model and its attention: "
            "measure them with calibrate_mag_cache"
        )


def check_run(
    cache: Cache | None, num_steps: int | None, timesteps: Sequence[float], pipe: Any
) -> None:
    """Check that a cache fits a run.

    Args:
        cache: The cache, or None.
        num_steps: Number of steps of the run; None if unknown.
        timesteps: Timesteps of the run; empty if unknown.
        pipe: The pipeline that runs, or None.

    Raises:
        RunFailed: If MagCache's ratios are of other steps, or if FasterCache would split batches without guidance.
    """
    if isinstance(cache, MagCache):
        _check_measured(cache, num_steps, timesteps)
    splits = isinstance(cache, FasterCache) and not cache.is_guidance_distilled
    if splits and reported_guidance(pipe) is False:
        raise RunFailed(
            "a fastercache cache splits batches of both halves of guidance, and this run has no guidance: set "
            "is_guidance_distilled to true"
        )


def _check_measured(cache: MagCache, num_steps: int | None, timesteps: Sequence[float]) -> None:
    measured = cache.measured_steps
    if num_steps is not None and measured not in (None, num_steps):
        raise RunFailed(
            f"the magcache ratios were measured in {measured} steps, and this run has {num_steps}: call "
            "calibrate_mag_cache for it"
        )
    if not cache.fits(timesteps):
        raise RunFailed(
            f"the magcache ratios were measured at the timesteps {_shown(cache.timesteps)}, and this run has "
            f"{_shown(timesteps)}: call calibrate_mag_cache with this scheduler and size"
        )


def _shown(values: Sequence[float]) -> str:
    """Return the first timesteps and the last one as text."""
    first = ", ".join(f"{value:.0f}" for value in values[:3])
    return f"{first}, ... {values[-1]:.0f}" if len(values) > 3 else first
