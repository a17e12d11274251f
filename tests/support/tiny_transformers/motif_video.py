"""Tiny Motif-Video."""

from __future__ import annotations

from diffusers import MotifVideoTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    ROPE_AXES,
    VALID_TEXT,
    VIDEO_GRID,
    noise,
    padding_mask,
    video_latents,
)
from support.tiny_transformers.touch import touch_arguments, touch_latents

IMAGE = 3


def inputs() -> Inputs:
    return {
        **video_latents(),
        "encoder_attention_mask": padding_mask(),
        "image_embeds": noise(BATCH, IMAGE, 8, seed=2),
    }


ROWS = [
    TinyTransformer(
        "motif-video",
        build(
            MotifVideoTransformer3DModel,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=2,
            mlp_ratio=2.0,
            text_embed_dim=16,
            image_embed_dim=8,
            rope_axes_dim=ROPE_AXES,
            enable_text_cross_attention_dual=True,
            enable_text_cross_attention_single=True,
            **HEADS,
        ),
        inputs,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=3,
        text=tuple(IMAGE + text for text in VALID_TEXT),
        touch_text=touch_arguments("image_embeds", "encoder_hidden_states"),
    )
]
