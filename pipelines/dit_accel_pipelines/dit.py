"""DiT: self-attention (``attn1``) over visual tokens; classes instead of text."""

from __future__ import annotations

from dit_accel_pipelines.family import Family, image_size_rule
from dit_accel_pipelines.pixart import layout

DIT = Family(
    name="dit",
    transformers=("DiTTransformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="batched",
    batched=("hidden_states", "timestep", "class_labels"),
    output="image",
    guidance=False,  # the conditional half of its batch is the first
)
