"""Declare Ovis-Image and LongCat-Image: Flux's blocks, text before visual tokens."""

from __future__ import annotations

from dit_accel_pipelines.family import Family, Postprocess
from dit_accel_pipelines.flux import layout, size_rule

OVIS_IMAGE = Family(
    name="ovis-image",
    transformers=("OvisImageTransformer2DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    text_tokens=lambda _: 256,
    text_first=True,
    joint=True,
    output="image",
)

LONGCAT_IMAGE = Family(
    name="longcat-image",
    transformers=("LongCatImageTransformer2DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    text_tokens=lambda _: 512,
    text_first=True,
    joint=True,
    output="image",
    postprocess=(
        Postprocess(
            "scales the guided prediction down to the norm of the conditional one",
            "enable_cfg_renorm",
        ),
    ),
)
