"""Declare PixArt-alpha and PixArt-sigma: self-attention (``attn1``) over visual tokens only."""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import image_size_rule
from dit_accel_pipelines.token_layout import latent_layout

PIXART = Family(
    name="pixart",
    transformers=("PixArtTransformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=latent_layout,
    size_rule=image_size_rule,
    cfg="batched",
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "added_cond_kwargs",
        "attention_mask",
        "encoder_attention_mask",
    ),
    output="image",
)
