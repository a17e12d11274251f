"""Declare HunyuanVideo 1.5: joint attention, visual tokens before the tokens of image, glyphs and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout, drop_padded_text, latent_grid

# The pipeline pads to these numbers of tokens.
IMAGE, GLYPHS, TEXT = 729, 256, 1000


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, F, H, W]``.

    The transformer sorts the other tokens: first the valid tokens of image, glyphs and text, then all padding.
    An image of zeros is padding.
    """
    grid = latent_grid(arguments, config)
    image = arguments["image_embeds"]
    masks = [arguments[name] for name in ("encoder_attention_mask", "encoder_attention_mask_2")]
    tokens = image.shape[1] + sum(mask.shape[1] for mask in masks)
    valid = image.shape[1] * image.any() + sum(mask.bool().sum(1) for mask in masks)
    mask = torch.arange(tokens, device=valid.device) < valid[:, None]
    return drop_padded_text(TokenLayout(*grid, tokens), mask)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE's latents in patches."""
    space = vae.get("spatial_compression_ratio", 16) * transformer["patch_size"]
    return SizeRule(space, vae.get("temporal_compression_ratio", 4), transformer["patch_size_t"])


HUNYUAN_VIDEO15 = Family(
    name="hunyuan-video-1.5",
    transformers=("HunyuanVideo15Transformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    text_tokens=lambda _: IMAGE + GLYPHS + TEXT,
    batch_arguments=(
        "hidden_states",
        "timestep",
        "timestep_r",
        "image_embeds",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
    ),
    joint=True,
)
