"""PixArt alpha and sigma: self-attention (``attn1``) over visual tokens alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import (
    Config,
    Family,
    SizeRule,
    TokenLayout,
    latent_scale,
    patches,
)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, H, W]``."""
    side = config["patch_size"]
    return TokenLayout(*patches(arguments["hidden_states"], (1, side, side)))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    return SizeRule(latent_scale(vae) * transformer["patch_size"], 1)


PIXART = Family(
    name="pixart",
    transformers=("PixArtTransformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="one batch",
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "added_cond_kwargs"),
        *("attention_mask", "encoder_attention_mask"),
    ),
    output="image",
)
