"""Caches that a perturbed forward would mix up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from dit_accel.guidance.config import PerturbedGuidance
from dit_accel.hooks import cache_without_contexts, foreign_states

_COUNTING = ("MagCache", "TaylorSeer")


def refuse_caches(transformer: nn.Module, settings: PerturbedGuidance) -> None:
    """Refuse diffusers' caches that would mix up branches or steps.

    Raises:
        RuntimeError: naming the cache.
    """
    cache = cache_without_contexts(transformer)
    if cache is not None:
        raise RuntimeError(
            f"perturbed guidance cannot run beside {cache}, which keeps one state for all branches of a step: "
            "disable that cache"
        )
    names = {type(state).__name__ for state in foreign_states(transformer)}
    counting = [name for name in sorted(names) if name.startswith(_COUNTING)]
    if counting and settings.interval[0] > 0:
        raise RuntimeError(
            f"perturbed guidance with an interval that begins late cannot run beside {counting[0]}, which "
            "counts the steps of each branch: begin at 0, or disable that cache"
        )


def stores_keys(arguments: Mapping[str, Any]) -> bool:
    """Whether a forward stores its keys and values, of reference images, for later ones: a perturbed one would
    store its own beside them.
    """
    if arguments.get("kv_cache_mode") == "extract":
        return True
    layers = getattr(arguments.get("kv_caches"), "caches", ())
    return any(getattr(layer, "mode", None) == "write" for layer in layers)
