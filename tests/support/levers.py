"""Settings of levers for tests, tiny pipelines, and everything that an undo has to restore."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from support.composition import Case
from support.tiny_pipelines import TINY

NOTHING: dict[str, Any] = {"method": "dense"}
SPARSE = {
    "method": "svg-ear",
    "knobs": {"density": 0.4},
    "schedule": {"dense_steps": 0.0, "min_tokens": 0},
}
RATIOS = {name: [1.0, 0.99, 0.99, 0.99] for name in ("transformer", "transformer_2")}
# Caches that skip a part of the four steps of `render`.
SKIPPING: dict[str, dict[str, Any]] = {
    "first-block": {"kind": "first-block", "threshold": 10.0},
    "taylorseer": {"kind": "taylorseer", "cache_interval": 2, "disable_cache_before_step": 1},
    "magcache": {
        **{"kind": "magcache", "threshold": 0.5, "retention_ratio": 0.25},
        **{"num_inference_steps": 4, "mag_ratios": RATIOS},
    },
    "seacache": {"kind": "seacache", "threshold": 10.0},
    "pab": {"kind": "pab", "spatial_attention_timestep_skip_range": [0, 1000]},
    "fastercache": {
        **{"kind": "fastercache", "is_guidance_distilled": True},
        "spatial_attention_timestep_skip_range": [-1, 990],
    },
}
# The same kinds, with knobs at which nothing is skipped.
IDLE: dict[str, dict[str, Any]] = {
    "first-block": {"kind": "first-block", "threshold": 0.0},
    "taylorseer": {"kind": "taylorseer", "disable_cache_before_step": 1000},
    "magcache": {**SKIPPING["magcache"], "threshold": 0.0},
    "seacache": {"kind": "seacache", "threshold": 0.0},
    "pab": {"kind": "pab", "spatial_attention_timestep_skip_range": [-2, -1]},
    "fastercache": {
        **{"kind": "fastercache", "is_guidance_distilled": True},
        "spatial_attention_timestep_skip_range": [-2, -1],
    },
}
LINEARS = ("int8-weights", "int8-dynamic", "fp8-weights", "fp8-storage")
CASES = {guidance: Case("", "", guidance, "1", "") for guidance in ("none", "separate", "batched")}


def snapshot(pipe: Any) -> dict[tuple[str, ...], Any]:
    """Return everything that an undo has to restore: attributes, processors, hooks, parameters and their bits."""
    found: dict[tuple[str, ...], Any] = {}
    for component in ("transformer", "transformer_2"):
        transformer = getattr(pipe, component, None)
        if transformer is None:
            continue
        for name, module in transformer.named_modules():
            registry = vars(module).get("_diffusers_hook")
            hooks = tuple(registry.hooks) if registry is not None else ()
            attributes = set(vars(module))
            if not name and not hooks:  # diffusers' own cache contexts leave an empty registry
                attributes.discard("_diffusers_hook")
            processor = id(getattr(module, "processor", None))
            found[component, name] = (type(module), attributes, hooks, processor)
        for name, parameter in transformer.named_parameters():
            found[component, name, "bits"] = (id(parameter), str(parameter.data.tolist()))
    return found


def tiny(family: str) -> tuple[Any, Callable[[], torch.Tensor]]:
    """Return a tiny pipeline and a function that renders with it."""
    row = TINY[family]
    pipe = row.build()
    return pipe, lambda: row.run(pipe, cfg=True)
