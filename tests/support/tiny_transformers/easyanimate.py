"""Tiny EasyAnimate."""

from __future__ import annotations

from diffusers import EasyAnimateTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    TEXT_TOKENS,
    VIDEO_GRID,
    noise,
    video_latents,
)
from support.tiny_transformers.touch import touch_arguments, touch_latents


def inputs() -> Inputs:
    return {**video_latents(), "encoder_hidden_states_t5": noise(BATCH, 3, 12, seed=2)}


ROWS = [
    TinyTransformer(
        "easyanimate",
        build(
            EasyAnimateTransformer3DModel,
            in_channels=4,
            out_channels=4,
            patch_size=2,
            num_layers=2,
            mmdit_layers=1,
            time_embed_dim=8,
            text_embed_dim=16,
            text_embed_dim_t5=12,
            **HEADS,
        ),
        inputs,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=2,
        text=(TEXT_TOKENS + 3, TEXT_TOKENS + 3),
        touch_text=touch_arguments("encoder_hidden_states", "encoder_hidden_states_t5"),
    )
]
