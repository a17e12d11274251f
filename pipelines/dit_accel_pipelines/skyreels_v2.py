"""Declare SkyReels V2: Wan's self-attention (``attn1``) over visual tokens only.

With diffusion forcing in blocks of frames, a causal mask keeps calls dense. Long videos are generated in chunks.
"""

from __future__ import annotations

from dit_accel_pipelines.family import CHUNKED, Family
from dit_accel_pipelines.token_layout import latent_layout
from dit_accel_pipelines.wan import size_rule

SKYREELS_V2 = Family(
    name="skyreels-v2",
    transformers=("SkyReelsV2Transformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=latent_layout,
    size_rule=size_rule,
    cfg="separate",
    batch_arguments=(
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_hidden_states_image",
    ),
    remark=f"{CHUNKED}. With diffusion forcing in blocks of frames, a causal mask keeps calls dense",
)
