"""Declare Cosmos 1, Predict2 and 2.5: self-attention (``attn1``) over visual tokens only."""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, latent_layout


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule; Cosmos 1 has its own VAE, the others have Wan's, with other config keys."""
    depth, side, _ = transformer["patch_size"]
    space = vae.get("spatial_compression_ratio", vae.get("scale_factor_spatial", 8))
    time = vae.get("temporal_compression_ratio", vae.get("scale_factor_temporal", 4))
    return SizeRule(space * side, time, depth)


COSMOS = Family(
    name="cosmos",
    transformers=("CosmosTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=latent_layout,
    size_rule=size_rule,
    cfg="separate",
    image_pipelines=("Cosmos2TextToImagePipeline",),
    batch_arguments=(
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "attention_mask",
        "block_controlnet_hidden_states",
        "condition_mask",
    ),
)
