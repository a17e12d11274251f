"""Declare ERNIE-Image: joint attention, visual tokens before text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import Family, heads_of_hidden_size
from dit_accel_pipelines.sizes import SizeRule, latent_scale
from dit_accel_pipelines.token_layout import Config, TokenLayout, drop_padded_text, latent_grid

# The VAE's latents are packed by 2 x 2.
PACKED_SIDE = 2


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, H, W]``; text is padded at its end."""
    lengths = arguments["text_lens"]
    text = arguments["text_bth"].shape[1]
    grid = latent_grid(arguments, config)
    valid = torch.arange(text, device=lengths.device) < lengths[:, None]
    return drop_padded_text(TokenLayout(*grid, text), valid)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of packed latents in patches."""
    return SizeRule(latent_scale(vae) * PACKED_SIDE * transformer["patch_size"], 1)


ERNIE_IMAGE = Family(
    name="ernie-image",
    transformers=("ErnieImageTransformer2DModel",),
    attention=r"layers\.\d+\.self_attention",
    blocks={"layers": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    heads=heads_of_hidden_size,
    batch_arguments=("hidden_states", "timestep", "text_bth", "text_lens"),
    joint=True,
    output="image",
    # The batch is the second dimension in its blocks.
    guidance=False,
)
