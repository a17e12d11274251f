"""GLM-Image: joint attention, text before visual tokens. Keys of reference images are cached: with them the
attention has more keys than queries, and stays dense.
"""

from __future__ import annotations

from dit_accel_pipelines.cogview import layout
from dit_accel_pipelines.family import Family, image_size_rule

GLM_IMAGE = Family(
    name="glm-image",
    transformers=("GlmImageTransformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="separate",
    text_first=True,
    batched=(
        *("hidden_states", "encoder_hidden_states", "prior_token_id", "prior_token_drop"),
        *("timestep", "target_size", "crop_coords"),
    ),
    joint=True,
    output="image",
    remark="with the cached keys of reference images its calls stay dense",
)
