"""Declare ConsisID: joint attention, text before visual tokens; the face enters by cross-attention."""

from __future__ import annotations

from dit_accel_pipelines.cogvideox import layout, size_rule
from dit_accel_pipelines.family import Family

CONSISID = Family(
    name="consisid",
    transformers=("ConsisIDTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    text_tokens=lambda transformer: transformer.get("max_text_seq_length", 226),
    text_first=True,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "timestep_cond",
        "id_cond",
        "id_vit_hidden",
    ),
    joint=True,
)
