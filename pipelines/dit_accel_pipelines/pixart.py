"""PixArt alpha and sigma: self-attention (``attn1``) over visual tokens alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import (
    Config,
    Family,
    TokenLayout,
    image_size_rule,
    latent_grid,
)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, H, W]``."""
    return TokenLayout(*latent_grid(arguments, config))


PIXART = Family(
    name="pixart",
    transformers=("PixArtTransformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="batched",
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "added_cond_kwargs"),
        *("attention_mask", "encoder_attention_mask"),
    ),
    output="image",
)
