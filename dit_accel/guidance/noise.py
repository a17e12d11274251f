"""How much noise is left at a scheduler's steps."""

from __future__ import annotations

from typing import Any

from dit_accel.errors import InvalidSettings

PURE = 1000.0


def noise_levels(scheduler: Any) -> list[float]:
    """A scheduler's timesteps as levels of noise from 1000, which is pure noise, to 0: some count them up.

    Raises:
        InvalidSettings: for a scheduler whose timesteps are others, such as logarithms of sigma.
    """
    levels = [float(timestep) for timestep in scheduler.timesteps]
    logarithms = hasattr(scheduler, "precondition_noise")  # of EDM
    other = scheduler.config.get("num_train_timesteps", PURE) != PURE
    if logarithms or other or not all(-1e-3 <= level <= PURE + 1e-3 for level in levels):
        raise InvalidSettings(
            f"adaptive guidance needs timesteps of 0 to 1000, and those of {type(scheduler).__name__} here are "
            "others: leave adaptive out, or choose an interval"
        )
    counted_up = scheduler.config.get("invert_sigmas", False)
    return [PURE - level for level in levels] if counted_up else levels
