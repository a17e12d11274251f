"""Tiny CogVideoX and CogVideoX 1.5."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import CogVideoXTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    FULL_TEXT,
    HEADS,
    TEXT_TOKENS,
    TIMESTEP,
    VIDEO_GRID,
    noise,
)
from support.tiny_transformers.touch import touch_frames_first, touch_text

CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 2,
    **HEADS,
}


def inputs(frames: int = VIDEO_GRID[0]) -> Inputs:
    return {
        "hidden_states": noise(BATCH, frames, 4, 8, 12),
        "encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 16, seed=1),
        "timestep": torch.tensor(TIMESTEP),
    }


def inputs_15() -> Inputs:
    """Return inputs with two latent frames per token, RoPE, and image-to-video's embedding."""
    frames, height, width = VIDEO_GRID
    angles = noise(frames * height * width, 16, seed=2)
    return {
        **inputs(2 * frames),
        "ofs": torch.tensor([2.0]),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


ROWS = [
    TinyTransformer(
        "cogvideox",
        build(
            CogVideoXTransformer3DModel,
            sample_width=12,
            sample_height=8,
            sample_frames=9,
            max_text_seq_length=TEXT_TOKENS,
            **CONFIG,
        ),
        inputs,
        touch_frames_first,
        grid=VIDEO_GRID,
        layers=2,
        text=FULL_TEXT,
        touch_text=touch_text,
    ),
    TinyTransformer(
        "cogvideox",
        build(
            CogVideoXTransformer3DModel,
            ofs_embed_dim=8,
            patch_size_t=2,
            use_rotary_positional_embeddings=True,
            **CONFIG,
        ),
        inputs_15,
        partial(touch_frames_first, frames_per_token=2),
        grid=VIDEO_GRID,
        layers=2,
        text=FULL_TEXT,
        touch_text=touch_text,
    ),
]
