"""Declare Lumina 2: joint attention; in each sample, the valid text comes before visual tokens.

Refiners attend over text only or over visual tokens only. They stay dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import Family, heads_of_hidden_size
from dit_accel_pipelines.sizes import image_size_rule
from dit_accel_pipelines.token_layout import Config, TokenLayout, latent_grid, split_by_sample


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, H, W]``.

    Samples with less text are padded after their visual tokens.
    """
    mask = arguments["encoder_attention_mask"]
    grid = latent_grid(arguments, config)
    texts = mask.sum(1).tolist()
    longest = TokenLayout(*grid, max(texts), text_first=True)
    if min(texts) == max(texts):
        return longest
    lengths = [text + longest.visual_tokens for text in texts]
    return split_by_sample(longest, [torch.arange(n, device=mask.device) for n in lengths])


LUMINA2 = Family(
    name="lumina2",
    transformers=("Lumina2Transformer2DModel",),
    attention=r"layers\.\d+\.attn",
    blocks={"layers": "num_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="separate",
    text_tokens=lambda _: 256,
    text_first=True,
    heads=heads_of_hidden_size,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_attention_mask",
    ),
    joint=True,
    output="image",
    guidance=False,
)
