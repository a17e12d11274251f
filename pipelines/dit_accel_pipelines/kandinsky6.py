"""Declare Kandinsky 6: self-attention over visual tokens only, with cross-attention to text and audio.

A reference image is the last frame.
"""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.kandinsky5 import heads, layout, size_rule

KANDINSKY6 = Family(
    name="kandinsky-6",
    transformers=("Kandinsky6Transformer3DModel",),
    attention=r"visual_transformer_blocks\.\d+\.video_dec_block\.self_attention",
    blocks={"visual_transformer_blocks": "num_visual_blocks"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    heads=heads,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "pooled_projections",
        "audio_hidden_states",
        "encoder_attention_mask",
        "visual_token_type_ids",
    ),
)
