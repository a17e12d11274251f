"""Declare HunyuanDiT: self-attention (``attn1``) over visual tokens only, with a separate cross-attention to text."""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import image_size_rule
from dit_accel_pipelines.token_layout import latent_layout

HUNYUAN_DIT = Family(
    name="hunyuan-dit",
    transformers=("HunyuanDiT2DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=latent_layout,
    size_rule=image_size_rule,
    cfg="batched",
    batch_arguments=(
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "text_embedding_mask",
        "encoder_hidden_states_t5",
        "text_embedding_mask_t5",
        "image_meta_size",
        "style",
        "controlnet_block_samples",
    ),
    output="image",
    skip_connections=True,
)
