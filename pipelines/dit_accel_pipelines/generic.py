"""Transformers that no family declares: their self-attention, recognised from their modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dit_accel_pipelines.family import Config, Family, SizeRule

NAMES = ("attn", "attn1", "self_attn", "self_attention", "attention")
NOT_VISUAL = re.compile(
    "text|txt|context|audio|refiner|caption|perceiver|face|fusion|condition|embed|image_cond"
)


def generic_family(
    transformer: nn.Module, is_patchable: Callable[[nn.Module], bool]
) -> Family | None:
    """A family of one: attention modules by name, in the block lists of the transformer itself. Where the tokens are
    stays unknown, so that methods that need a grid do nothing, and so do calls with a mask or fewer tokens
    than the largest attention has. None where nothing is found.
    """
    lists = [n for n, child in transformer.named_children() if isinstance(child, nn.ModuleList)]
    found = {stack: attention_names(transformer, stack, is_patchable) for stack in lists}
    found = {stack: names for stack, names in found.items() if names}
    if not found:
        return None
    every = [name for names in found.values() for name in names]
    return Family(
        name=f"generic ({type(transformer).__name__})",
        transformers=(type(transformer).__name__,),
        attention="|".join(map(re.escape, every)),
        blocks=dict.fromkeys(found, ""),
        layout=no_layout,
        size_rule=no_rule,
        cfg="separate",
        guidance=False,
        tested="declared",
    )


def no_layout(_arguments: Mapping[str, Any], _config: Config) -> None:
    """Nothing is known."""


def no_rule(_transformer: Config, _vae: Config) -> SizeRule:
    """Any size."""
    return SizeRule(1, 1)


def attention_names(
    transformer: nn.Module, stack: str, is_patchable: Callable[[nn.Module], bool]
) -> list[str]:
    """Names of what looks like self-attention over the picture in one list of blocks."""
    return [
        name
        for name, module in transformer.get_submodule(stack).named_modules(prefix=stack)
        if name.rpartition(".")[2] in NAMES
        and not NOT_VISUAL.search(name)
        and not getattr(module, "is_cross_attention", False)
        and is_patchable(module)
    ]
