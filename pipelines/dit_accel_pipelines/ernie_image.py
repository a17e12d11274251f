"""ERNIE-Image: joint attention, visual tokens before text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import (
    Config,
    Family,
    SizeRule,
    TokenLayout,
    latent_grid,
    latent_scale,
    valid_text,
)
from dit_accel_pipelines.joyimage import heads

PACKED = 2  # the VAE's latents come packed, 2 x 2


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, H, W]``; text is padded at its end."""
    lengths = arguments["text_lens"]
    text = arguments["text_bth"].shape[1]
    grid = latent_grid(arguments, config)
    valid = torch.arange(text, device=lengths.device) < lengths[:, None]
    return valid_text(TokenLayout(*grid, text), valid)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    return SizeRule(latent_scale(vae) * PACKED * transformer["patch_size"], 1)


ERNIE_IMAGE = Family(
    name="ernie-image",
    transformers=("ErnieImageTransformer2DModel",),
    attention=r"layers\.\d+\.self_attention",
    blocks={"layers": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    heads=heads,
    batched=("hidden_states", "timestep", "text_bth", "text_lens"),
    joint=True,
    output="image",
    guidance=False,  # its blocks have the batch second
)
