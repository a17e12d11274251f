"""Refuse settings of a profile that do not go together, or that would do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_accel.core.caches import FasterCache
from dit_accel.errors import InvalidSettings
from dit_accel.methods import Dense

if TYPE_CHECKING:
    from dit_accel.runtime.profile import Profile


def check_together(profile: Profile) -> None:
    """Check the settings of a profile against each other.

    Raises:
        InvalidSettings: naming the settings, and what to do.
    """
    _check_dense(profile)
    cache, compiled = profile.cache, profile.compile
    if cache is not None and profile.guard.mode == "on":
        raise InvalidSettings(
            f"guard 'on' runs forwards again, which a {cache.kind} cache would count as steps: use guard 'warn'"
        )
    is_sparse = not isinstance(profile.method, Dense)
    if isinstance(cache, FasterCache) and not cache.is_guidance_distilled and is_sparse:
        raise InvalidSettings(
            f"a fastercache cache drops rows of the batch, so {profile.method.name} would mix up samples: set "
            "is_guidance_distilled to true, or use method dense"
        )
    if cache is not None and cache.in_blocks and compiled is not None and compiled.fullgraph:
        raise InvalidSettings(
            f"a {cache.kind} cache decides inside the blocks, which breaks their graphs: set fullgraph to false"
        )
    if (
        compiled is not None
        and profile.linears is not None
        and profile.linears.kind == "fp8-storage"
    ):
        raise InvalidSettings(
            "linears fp8-storage casts weights by hooks, which torch.compile cannot follow: leave compile out"
        )


def _check_dense(profile: Profile) -> None:
    """Refuse what sparse calls alone use beside the method dense."""
    if not isinstance(profile.method, Dense):
        return
    if profile.precision != "full":
        raise InvalidSettings(
            f"precision {profile.precision} is for sparse calls, and method dense has none: set dense_precision"
        )
    if profile.guard.mode != "off":
        raise InvalidSettings(
            f"guard {profile.guard.mode!r} is for sparse calls, and method dense has none: leave it out"
        )
