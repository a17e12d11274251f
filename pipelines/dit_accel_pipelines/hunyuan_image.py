"""Declare HunyuanImage 2.1 and its refiner: joint attention, visual tokens before text.

Blocks are dual-stream or single-stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout, drop_padded_text, patch_grid


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, H, W]`` or ``[B, C, F, H, W]``.

    If there are two texts, the transformer moves their padding to the end.
    """
    mask = arguments["encoder_attention_mask"].bool()
    if config["text_embed_2_dim"] and arguments.get("encoder_hidden_states_2") is not None:
        both = torch.cat([arguments["encoder_attention_mask_2"].bool(), mask], 1)
        mask = torch.arange(both.shape[1], device=both.device) < both.sum(1, keepdim=True)
    depth, *sides = (1, *config["patch_size"])[-3:]
    grid = patch_grid(arguments["hidden_states"], (depth, sides[0], sides[1]))
    return drop_padded_text(TokenLayout(*grid, mask.shape[1]), mask)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE's latents in patches."""
    space = vae.get("spatial_compression_ratio", 32) * transformer["patch_size"][-1]
    return SizeRule(space, 1)


HUNYUAN_IMAGE = Family(
    name="hunyuan-image",
    transformers=("HunyuanImageTransformer2DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    text_tokens=lambda transformer: 1000 + 128 if transformer["text_embed_2_dim"] else 256,
    batch_arguments=(
        "hidden_states",
        "timestep",
        "timestep_r",
        "guidance",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
    ),
    joint=True,
    output="image",
)
