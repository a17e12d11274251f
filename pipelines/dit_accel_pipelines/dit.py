"""Declare DiT: self-attention (``attn1``) over visual tokens; class labels replace text."""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import image_size_rule
from dit_accel_pipelines.token_layout import latent_layout

DIT = Family(
    name="dit",
    transformers=("DiTTransformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=latent_layout,
    size_rule=image_size_rule,
    cfg="batched",
    batch_arguments=("hidden_states", "timestep", "class_labels"),
    output="image",
    # The conditional half of the batch comes first.
    guidance=False,
)
