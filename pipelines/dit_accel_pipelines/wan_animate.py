"""Wan-Animate and ChronoEdit: Wan's self-attention (``attn1``) over visual tokens alone."""

from __future__ import annotations

from dit_accel_pipelines.family import STRETCHES, Family
from dit_accel_pipelines.wan import layout, size_rule

WAN_ANIMATE = Family(
    name="wan-animate",
    transformers=("WanAnimateTransformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "encoder_hidden_states_image"),
        *("pose_hidden_states", "face_pixel_values"),
    ),
    remark=STRETCHES,
)

CHRONOEDIT = Family(
    name="chronoedit",
    transformers=("ChronoEditTransformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    batched=("hidden_states", "encoder_hidden_states", "timestep", "encoder_hidden_states_image"),
)
