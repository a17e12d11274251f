"""Tiny Allegro."""

from __future__ import annotations

import torch
from diffusers import AllegroTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import VIDEO_GRID, padding_mask, video_latents
from support.tiny_transformers.touch import touch_latents

# RoPE needs a multiple of three.
HEAD_DIM = 24


def inputs() -> Inputs:
    frames, *sides = VIDEO_GRID
    *freqs, frame, row, column = get_3d_rotary_pos_embed_allegro(
        HEAD_DIM, ((0, 0), sides), sides, frames
    )
    positions = torch.cartesian_prod(frame.long(), row.long(), column.long()).T.reshape(3, 1, -1)
    return {
        **video_latents(),
        "encoder_attention_mask": padding_mask(),
        "image_rotary_emb": (tuple(freqs), tuple(positions)),
    }


ROWS = [
    TinyTransformer(
        "allegro",
        build(
            AllegroTransformer3DModel,
            num_attention_heads=2,
            attention_head_dim=HEAD_DIM,
            num_layers=2,
            cross_attention_dim=48,
            sample_height=8,
            sample_width=12,
            sample_frames=3,
            caption_channels=16,
        ),
        inputs,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=2,
    )
]
