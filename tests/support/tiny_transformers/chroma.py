"""Tiny Chroma."""

from __future__ import annotations

import torch
from diffusers import ChromaTransformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.flux import FLUX_LIKE
from support.tiny_transformers.inputs import (
    BATCH,
    IMAGE_GRID,
    VALID_TEXT,
    flux_like,
    padding_mask,
)
from support.tiny_transformers.touch import touch_text, touch_tokens


def inputs() -> Inputs:
    visible = torch.ones(BATCH, IMAGE_GRID[1] * IMAGE_GRID[2], dtype=torch.bool)
    return {**flux_like(IMAGE_GRID), "attention_mask": torch.cat([padding_mask(), visible], 1)}


ROWS = [
    TinyTransformer(
        "chroma",
        build(
            ChromaTransformer2DModel,
            **{**FLUX_LIKE, "num_single_layers": 2},
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ),
        inputs,
        touch_tokens(IMAGE_GRID),
        grid=IMAGE_GRID,
        layers=3,
        text=VALID_TEXT,
        touch_text=touch_text,
    )
]
