"""Tiny ConsisID."""

from __future__ import annotations

from diffusers import ConsisIDTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    FULL_TEXT,
    HEADS,
    TEXT_TOKENS,
    VIDEO_GRID,
    frames_first,
    noise,
    video_latents,
)
from support.tiny_transformers.touch import touch_frames_first, touch_text


def inputs() -> Inputs:
    return {
        **frames_first(video_latents()),
        "id_cond": noise(BATCH, 2, seed=2),
        "id_vit_hidden": [noise(BATCH, 3, 2, seed=3)],
    }


ROWS = [
    TinyTransformer(
        "consisid",
        build(
            ConsisIDTransformer3DModel,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=16,
            num_layers=2,
            sample_width=12,
            sample_height=8,
            sample_frames=9,
            max_text_seq_length=TEXT_TOKENS,
            is_train_face=True,
            cross_attn_interval=1,
            cross_attn_dim_head=4,
            cross_attn_num_heads=2,
            LFE_id_dim=2,
            LFE_vit_dim=2,
            LFE_depth=1,
            LFE_dim_head=4,
            LFE_num_heads=1,
            LFE_num_id_token=1,
            LFE_num_querie=1,
            LFE_output_dim=21,
            LFE_ff_mult=1,
            LFE_num_scale=1,
            **HEADS,
        ),
        inputs,
        touch_frames_first,
        grid=VIDEO_GRID,
        layers=2,
        text=FULL_TEXT,
        touch_text=touch_text,
    )
]
