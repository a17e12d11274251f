"""Tiny Stable Diffusion 3.5."""

from __future__ import annotations

from diffusers import SD3Transformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    FULL_TEXT,
    HEADS,
    IMAGE_GRID,
    image_latents,
    noise,
)
from support.tiny_transformers.touch import touch_latents, touch_text


def inputs() -> Inputs:
    return {**image_latents(), "pooled_projections": noise(BATCH, 16, seed=2)}


ROWS = [
    TinyTransformer(
        "sd3",
        # The first block has a second self-attention.
        build(
            SD3Transformer2DModel,
            sample_size=16,
            in_channels=4,
            num_layers=2,
            joint_attention_dim=16,
            caption_projection_dim=32,
            pooled_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
            **HEADS,
        ),
        inputs,
        touch_latents(),
        grid=IMAGE_GRID,
        layers=3,
        text=FULL_TEXT,
        touch_text=touch_text,
    )
]
