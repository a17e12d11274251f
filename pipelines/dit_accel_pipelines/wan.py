"""Declare Wan 2.1 and 2.2: self-attention (``attn1``) over visual tokens, separate cross-attention to text."""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, latent_layout


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE's latents in patches."""
    depth, side, _ = transformer["patch_size"]
    space, time = vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4)
    return SizeRule(space * side, time, depth)


WAN = Family(
    name="wan",
    transformers=("WanTransformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=latent_layout,
    size_rule=size_rule,
    cfg="separate",
)
