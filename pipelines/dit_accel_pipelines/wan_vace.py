"""Wan VACE: Wan with a second list of blocks, which the control latents go through first."""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.wan import layout, size_rule

# Perturbed guidance replays leading blocks by the last one's output; each control block has a hint of its own.
WAN_VACE = Family(
    name="wan-vace",
    transformers=("WanVACETransformer3DModel",),
    attention=r"(vace_)?blocks\.\d+\.attn1",
    blocks={"vace_blocks": "vace_layers", "blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    batched=(
        *("hidden_states", "timestep", "encoder_hidden_states"),
        *("encoder_hidden_states_image", "control_hidden_states"),
    ),
    guidance=False,
)
