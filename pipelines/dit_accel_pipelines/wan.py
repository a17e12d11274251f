"""Wan 2.1 and 2.2: self-attention (``attn1``) over visual tokens alone, text in a separate cross
attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``."""
    _, _, frames, height, width = arguments["hidden_states"].shape
    depth, rows, columns = config["patch_size"]
    return TokenLayout(frames // depth, height // rows, width // columns)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    return SizeRule(
        multiple=vae.get("scale_factor_spatial", 8) * transformer["patch_size"][1],
        frame_step=vae.get("scale_factor_temporal", 4),
    )


def video_layout(
    frames: int, height: int, width: int, transformer: Config, vae: Config
) -> TokenLayout:
    """Tokens of a video of some frames of height x width pixels."""
    depth, rows, columns = transformer["patch_size"]
    space = vae.get("scale_factor_spatial", 8)
    latents = (frames - 1) // vae.get("scale_factor_temporal", 4) + 1
    return TokenLayout(latents // depth, height // space // rows, width // space // columns)


WAN = Family(
    name="wan",
    transformers=("WanTransformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    video_layout=video_layout,
    cfg="two calls",
)
