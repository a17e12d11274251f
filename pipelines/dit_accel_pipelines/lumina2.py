"""Lumina 2: joint attention, sample by sample the valid text before visual tokens. Refiners, which see
each alone, stay dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import (
    Config,
    Family,
    TokenLayout,
    image_size_rule,
    in_parts,
    latent_grid,
)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, H, W]``; samples with less text are padded at their
    end.
    """
    mask = arguments["encoder_attention_mask"]
    grid = latent_grid(arguments, config)
    texts = mask.sum(1).tolist()
    found = TokenLayout(*grid, max(texts), text_first=True)
    if min(texts) == max(texts):
        return found
    lengths = [text + found.visual_tokens for text in texts]
    return in_parts(found, [torch.arange(n, device=mask.device) for n in lengths])


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
    heads=lambda transformer: (
        transformer["num_attention_heads"],
        transformer["hidden_size"] // transformer["num_attention_heads"],
    ),
    batched=("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"),
    joint=True,
    output="image",
    guidance=False,
)
