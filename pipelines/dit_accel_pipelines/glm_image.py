"""Declare GLM-Image: joint attention, text before visual tokens.

Calls stay dense with cached keys of reference images, because they have more keys than queries.
"""

from __future__ import annotations

from dit_accel_pipelines.cogview import layout
from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import image_size_rule

GLM_IMAGE = Family(
    name="glm-image",
    transformers=("GlmImageTransformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="separate",
    text_first=True,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "prior_token_id",
        "prior_token_drop",
        "timestep",
        "target_size",
        "crop_coords",
    ),
    joint=True,
    output="image",
    remark="Calls stay dense if the keys of reference images are cached",
)
