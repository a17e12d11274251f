"""Cosmos 1, Predict2 and 2.5: self-attention (``attn1``) over visual tokens alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout, latent_grid


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``."""
    return TokenLayout(*latent_grid(arguments, config))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Cosmos 1 has a VAE of its own, the others that of Wan."""
    depth, side, _ = transformer["patch_size"]
    space = vae.get("spatial_compression_ratio", vae.get("scale_factor_spatial", 8))
    time = vae.get("temporal_compression_ratio", vae.get("scale_factor_temporal", 4))
    return SizeRule(space * side, time, depth)


COSMOS = Family(
    name="cosmos",
    transformers=("CosmosTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    image_pipelines=("Cosmos2TextToImagePipeline",),
    batched=(
        *("hidden_states", "timestep", "encoder_hidden_states", "attention_mask"),
        *("block_controlnet_hidden_states", "condition_mask"),
    ),
)
