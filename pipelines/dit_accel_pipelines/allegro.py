"""Allegro: self-attention (``attn1``) over visual tokens alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import (
    Config,
    Family,
    SizeRule,
    TokenLayout,
    latent_grid,
    latent_scale,
)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``."""
    return TokenLayout(*latent_grid(arguments, config))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    space = latent_scale(vae) * transformer["patch_size"]
    time = vae.get("temporal_compression_ratio", 4)
    return SizeRule(space, time, transformer["patch_size_t"], first_frames=0)


ALLEGRO = Family(
    name="allegro",
    transformers=("AllegroTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep"),
        *("attention_mask", "encoder_attention_mask"),
    ),
)
