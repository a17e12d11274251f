"""HunyuanImage 2.1 and its refiner: joint attention, visual tokens before text, in dual- and single-stream blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout, patches, valid_text


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, H, W]`` or ``[B, C, F, H, W]``; of two texts the
    transformer puts the padding at the end.
    """
    mask = arguments["encoder_attention_mask"].bool()
    if config["text_embed_2_dim"] and arguments.get("encoder_hidden_states_2") is not None:
        both = torch.cat([arguments["encoder_attention_mask_2"].bool(), mask], 1)
        mask = torch.arange(both.shape[1], device=both.device) < both.sum(1, keepdim=True)
    depth, *sides = (1, *config["patch_size"])[-3:]
    grid = patches(arguments["hidden_states"], (depth, sides[0], sides[1]))
    return valid_text(TokenLayout(*grid, mask.shape[1]), mask)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
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
    batched=(
        *("hidden_states", "timestep", "timestep_r", "guidance"),
        *("encoder_hidden_states", "encoder_attention_mask"),
        *("encoder_hidden_states_2", "encoder_attention_mask_2"),
    ),
    joint=True,
    output="image",
)
