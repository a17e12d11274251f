"""Tiny Qwen-Image, with the images of Edit."""

from __future__ import annotations

from diffusers import QwenImageTransformer2DModel
from support.tiny_transformers.base import Grid, Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    ROPE_AXES,
    VALID_TEXT,
    VIDEO_GRID,
    padding_mask,
    visual_tokens,
)
from support.tiny_transformers.touch import touch_text, touch_tokens

# Three images.
GRID = VIDEO_GRID


def inputs(grid: Grid = GRID) -> Inputs:
    return {
        **visual_tokens(grid),
        "encoder_hidden_states_mask": padding_mask(),
        "img_shapes": [[(1, *grid[1:])] * grid[0]] * BATCH,
    }


ROWS = [
    TinyTransformer(
        "qwen-image",
        build(
            QwenImageTransformer2DModel,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            joint_attention_dim=16,
            axes_dims_rope=ROPE_AXES,
            **HEADS,
        ),
        inputs,
        touch_tokens(GRID),
        grid=GRID,
        layers=2,
        text=VALID_TEXT,
        touch_text=touch_text,
    )
]
