"""Checks for caches that the perturbed forward would corrupt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dit_accel.errors import RunFailed
from dit_accel.guidance.config import PerturbedGuidance
from dit_accel.hooks import cache_without_contexts, foreign_states, has_cache_dit

if TYPE_CHECKING:
    from torch import nn

_STEP_COUNTING_CACHES = ("MagCache", "TaylorSeer", "SeaCache", "PyramidAttention", "FasterCache")


def check_caches(transformer: nn.Module, settings: PerturbedGuidance) -> None:
    """Check that no cache of others on a transformer would mix up branches or steps.

    Raises:
        RunFailed: If one would. The message names the cache.
    """
    if has_cache_dit(transformer):
        raise RunFailed(
            "perturbed guidance cannot run with cache-dit, which tells steps and branches apart by counting forwards: "
            "call cache_dit.disable_cache, or take a cache of the profile"
        )
    cache = cache_without_contexts(transformer)
    if cache is not None:
        raise RunFailed(
            f"perturbed guidance cannot run with {cache}, which keeps one state for all branches of a step: "
            "disable that cache"
        )
    names = sorted({type(state).__name__ for state in foreign_states(transformer)})
    counting = [name for name in names if name.startswith(_STEP_COUNTING_CACHES)]
    if counting and settings.interval[0] > 0:
        raise RunFailed(
            f"perturbed guidance whose interval starts after 0 cannot run with {counting[0]}, which "
            "counts the steps of each branch: start the interval at 0, or disable that cache"
        )


def stores_keys(arguments: Mapping[str, Any]) -> bool:
    """Return True if a forward stores the keys and values of reference images for later forwards.

    A perturbed forward would store its own keys as well.
    """
    if arguments.get("kv_cache_mode") == "extract":
        return True
    layers = getattr(arguments.get("kv_caches"), "caches", ())
    return any(getattr(layer, "mode", None) == "write" for layer in layers)
