"""Declare Motif-Video: joint attention, visual tokens before image embeddings and text.

Blocks are dual-stream or single-stream. A decoder attends over the visual tokens twice. It stays dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout, drop_padded_text, latent_grid


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, F, H, W]``; text is padded at its end."""
    embeds = arguments.get("image_embeds")
    image = 0 if embeds is None else embeds.shape[1]
    text = image + arguments["encoder_hidden_states"].shape[1]
    padded = TokenLayout(*latent_grid(arguments, config), text)
    mask = arguments.get("encoder_attention_mask")
    if mask is None:
        return padded
    return drop_padded_text(padded, torch.nn.functional.pad(mask.bool(), (image, 0), value=True))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE's latents in patches."""
    space = vae.get("scale_factor_spatial", 8) * transformer["patch_size"]
    return SizeRule(space, vae.get("scale_factor_temporal", 4), transformer["patch_size_t"])


MOTIF_VIDEO = Family(
    name="motif-video",
    transformers=("MotifVideoTransformer3DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    text_tokens=lambda _: 512,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_attention_mask",
        "image_embeds",
    ),
    joint=True,
    remark="Its decoder stays dense",
)
