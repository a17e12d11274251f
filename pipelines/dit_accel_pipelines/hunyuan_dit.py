"""HunyuanDiT: self-attention (``attn1``) over visual tokens alone, text in a separate cross attention."""

from __future__ import annotations

from dit_accel_pipelines.family import Family, image_size_rule
from dit_accel_pipelines.pixart import layout

HUNYUAN_DIT = Family(
    name="hunyuan-dit",
    transformers=("HunyuanDiT2DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="batched",
    batched=(
        *("hidden_states", "timestep", "encoder_hidden_states", "text_embedding_mask"),
        *("encoder_hidden_states_t5", "text_embedding_mask_t5", "image_meta_size", "style"),
        "controlnet_block_samples",
    ),
    output="image",
    guidance=False,  # late blocks read what early ones made
)
