"""Tiny Kandinsky 5."""

from __future__ import annotations

import torch
from diffusers import Kandinsky5Transformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    ROPE_AXES,
    TEXT_TOKENS,
    TIMESTEP,
    VIDEO_GRID,
    noise,
)
from support.tiny_transformers.touch import touch_channels_last

# One block: a second one would round rotated queries to bfloat16, and thereby enlarge the smallest difference.
transformer = build(
    Kandinsky5Transformer3DModel,
    in_visual_dim=4,
    out_visual_dim=4,
    in_text_dim=16,
    in_text_dim2=8,
    time_dim=16,
    model_dim=32,
    ff_dim=64,
    num_text_blocks=1,
    num_visual_blocks=1,
    axes_dims=ROPE_AXES,
)


def inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, 3, 8, 12, 4),
        "encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 16, seed=1),
        "timestep": torch.tensor(TIMESTEP),
        "pooled_projections": noise(BATCH, 8, seed=2),
        "visual_rope_pos": [torch.arange(size) for size in VIDEO_GRID],
        "text_rope_pos": torch.arange(TEXT_TOKENS),
    }


ROWS = [
    TinyTransformer(
        "kandinsky-5", transformer, inputs, touch_channels_last, grid=VIDEO_GRID, layers=1
    )
]
