"""SkyReels V2: like Wan; with diffusion forcing in blocks of frames, a causal mask keeps it dense. It also makes long
videos stretch by stretch.
"""

from __future__ import annotations

from dit_accel_pipelines.family import STRETCHES, Family
from dit_accel_pipelines.wan import layout, size_rule

SKYREELS_V2 = Family(
    name="skyreels-v2",
    transformers=("SkyReelsV2Transformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    batched=(
        *("hidden_states", "timestep", "encoder_hidden_states"),
        "encoder_hidden_states_image",
    ),
    remark=f"{STRETCHES}; with diffusion forcing in blocks of frames its mask keeps calls dense",
)
