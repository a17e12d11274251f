"""Declare Wan-Animate and ChronoEdit: Wan's self-attention (``attn1``) over visual tokens only."""

from __future__ import annotations

from dit_accel_pipelines.family import CHUNKED, Family
from dit_accel_pipelines.token_layout import latent_layout
from dit_accel_pipelines.wan import size_rule

WAN_ANIMATE = Family(
    name="wan-animate",
    transformers=("WanAnimateTransformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=latent_layout,
    size_rule=size_rule,
    cfg="separate",
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_hidden_states_image",
        "pose_hidden_states",
        "face_pixel_values",
    ),
    remark=CHUNKED,
)

CHRONOEDIT = Family(
    name="chronoedit",
    transformers=("ChronoEditTransformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=latent_layout,
    size_rule=size_rule,
    cfg="separate",
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_hidden_states_image",
    ),
)
