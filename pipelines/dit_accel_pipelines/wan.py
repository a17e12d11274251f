"""Wan 2.1 and 2.2: self-attention (``attn1``) over visual tokens alone, text in a separate cross
attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout, latent_grid


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``."""
    return TokenLayout(*latent_grid(arguments, config))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    depth, side, _ = transformer["patch_size"]
    space, time = vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4)
    return SizeRule(space * side, time, depth)


WAN = Family(
    name="wan",
    transformers=("WanTransformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
)
