"""Declare Wan VACE: Wan with a second block list, through which control latents pass first."""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.token_layout import latent_layout
from dit_accel_pipelines.wan import size_rule

WAN_VACE = Family(
    name="wan-vace",
    transformers=("WanVACETransformer3DModel",),
    attention=r"(vace_)?blocks\.\d+\.attn1",
    blocks={"vace_blocks": "vace_layers", "blocks": "num_layers"},
    layout=latent_layout,
    size_rule=size_rule,
    cfg="separate",
    batch_arguments=(
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_hidden_states_image",
        "control_hidden_states",
    ),
    # Perturbed guidance replaces the first blocks by the last one's output, but each control block gives its own hint.
    guidance=False,
)
