"""Tell that a profile was tuned for another number of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_accel.runtime.profile import Profile


def other_steps(profile: Profile, num_steps: int | None) -> str | None:
    """Return in words that a profile's cache was tuned for another number of steps, or None."""
    cache, tuned = profile.cache, profile.provenance.get("steps")
    if cache is None or tuned is None or num_steps in (None, tuned) or cache.rests(num_steps):
        return None
    return f"the {cache.kind} cache was tuned for {tuned} steps, and this run has {num_steps}: tune it again"
