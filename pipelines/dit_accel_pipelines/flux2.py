"""Declare Flux 2: joint attention, text before visual tokens, in dual-stream and single-stream blocks.

Reference images come after the image.
"""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.flux import layout, size_rule

FLUX2 = Family(
    name="flux2",
    transformers=("Flux2Transformer2DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="embedded",
    text_tokens=lambda _: 512,
    text_first=True,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "img_ids",
        "txt_ids",
        "guidance",
    ),
    joint=True,
    output="image",
    remark="Calls stay dense if Klein KV caches the keys of reference images",
)
