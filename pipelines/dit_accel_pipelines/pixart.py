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
)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, H, W]``."""
    _, _, height, width = arguments["hidden_states"].shape
    patch = config["patch_size"]
    return TokenLayout(1, height // patch, width // patch)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    return SizeRule(latent_scale(vae) * transformer["patch_size"], frame_step=1)


def video_layout(
    frames: int, height: int, width: int, transformer: Config, vae: Config
) -> TokenLayout:
    """Tokens of an image of height x width pixels."""
    space = latent_scale(vae) * transformer["patch_size"]
    return TokenLayout(1, height // space, width // space)


PIXART = Family(
    name="pixart",
    transformers=("PixArtTransformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    video_layout=video_layout,
    cfg="one batch",
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "added_cond_kwargs"),
        *("attention_mask", "encoder_attention_mask"),
    ),
    output="image",
    tested="declared",
)
