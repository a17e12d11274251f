"""Recognise the self-attention of transformers that no family declares, from their modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config

if TYPE_CHECKING:
    from torch import nn

ATTENTION_NAMES = ("attn", "attn1", "self_attn", "self_attention", "attention")
NOT_VISUAL = re.compile(
    "text|txt|context|audio|refiner|caption|perceiver|face|fusion|condition|embed|image_cond"
)


def generic_family(
    transformer: nn.Module, is_patchable: Callable[[nn.Module], bool]
) -> Family | None:
    """Return a family for one transformer, or None if no self-attention is recognised.

    Attention modules are recognised by name, in block lists that are direct children of the transformer. The
    positions of tokens stay unknown. Therefore calls stay dense with methods that need a grid, with a mask, and
    with fewer tokens than the largest self-attention has.

    Args:
        transformer: Transformer to search.
        is_patchable: Function that returns True for an attention module whose processor can be patched.
    """
    children = transformer.named_children()
    lists = [name for name, child in children if isinstance(child, torch.nn.ModuleList)]
    recognised = {name: find_attention(transformer, name, is_patchable) for name in lists}
    recognised = {name: modules for name, modules in recognised.items() if modules}
    if not recognised:
        return None
    names = [name for modules in recognised.values() for name in modules]
    return Family(
        name=f"generic ({type(transformer).__name__})",
        transformers=(type(transformer).__name__,),
        attention="|".join(map(re.escape, names)),
        blocks=dict.fromkeys(recognised, ""),
        layout=unknown_layout,
        size_rule=any_size,
        cfg="separate",
        guidance=False,
        status="declared",
    )


def unknown_layout(_arguments: Mapping[str, Any], _config: Config) -> None:
    """Return None, because nothing is known about the positions of tokens."""


def any_size(_transformer: Config, _vae: Config) -> SizeRule:
    """Return a size rule that accepts every size."""
    return SizeRule(1, 1)


def find_attention(
    transformer: nn.Module, block_list: str, is_patchable: Callable[[nn.Module], bool]
) -> list[str]:
    """Return the names of modules in a block list that look like self-attention over visual tokens."""
    return [
        name
        for name, module in transformer.get_submodule(block_list).named_modules(prefix=block_list)
        if name.rpartition(".")[2] in ATTENTION_NAMES
        and not NOT_VISUAL.search(name)
        and not getattr(module, "is_cross_attention", False)
        and is_patchable(module)
    ]
