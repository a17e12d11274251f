"""Noise levels of a scheduler's steps."""

from __future__ import annotations

from typing import Any

from dit_accel.errors import InvalidSettings

PURE_NOISE = 1000.0
_TOLERANCE = 1e-3


def noise_levels(scheduler: Any) -> list[float]:
    """Return the noise level of each step, from 1000 (pure noise) to 0.

    A noise level is the timestep, or 1000 minus the timestep if the scheduler counts up.

    Raises:
        InvalidSettings: If the scheduler's timesteps have another meaning, such as logarithms of sigma.
    """
    timesteps = [float(timestep) for timestep in scheduler.timesteps]
    # EDM's timesteps are logarithms of sigma.
    logarithmic = hasattr(scheduler, "precondition_noise")
    other_range = scheduler.config.get("num_train_timesteps", PURE_NOISE) != PURE_NOISE
    inside = all(-_TOLERANCE <= timestep <= PURE_NOISE + _TOLERANCE for timestep in timesteps)
    if logarithmic or other_range or not inside:
        raise InvalidSettings(
            f"adaptive guidance needs timesteps of 0 to 1000, and those of {type(scheduler).__name__} are "
            "different: leave adaptive out, or use an interval"
        )
    if scheduler.config.get("invert_sigmas", False):
        return [PURE_NOISE - timestep for timestep in timesteps]
    return timesteps
