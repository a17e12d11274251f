"""Tiny CogView 3 Plus and CogView 4."""

from __future__ import annotations

import torch
from diffusers import CogView3PlusTransformer2DModel, CogView4Transformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import BATCH, FULL_TEXT, HEADS, IMAGE_GRID, image_latents
from support.tiny_transformers.touch import touch_latents, touch_text

COGVIEW_LIKE = {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "text_embed_dim": 16,
    "time_embed_dim": 8,
    "condition_dim": 4,
    **HEADS,
}


def image_sizes() -> Inputs:
    """Return the sizes of image and crop."""
    names = ("original_size", "target_size", "crop_coords")
    return {name: torch.tensor([[96.0, 128.0]] * BATCH) for name in names}


def inputs() -> Inputs:
    return {**image_latents(), **image_sizes()}


ROWS = [
    TinyTransformer(
        name,
        transformer,
        inputs,
        touch_latents(),
        grid=IMAGE_GRID,
        layers=2,
        text=FULL_TEXT,
        touch_text=touch_text,
    )
    for name, transformer in (
        (
            "cogview3-plus",
            build(
                CogView3PlusTransformer2DModel,
                pos_embed_max_size=8,
                sample_size=8,
                **COGVIEW_LIKE,
            ),
        ),
        ("cogview4", build(CogView4Transformer2DModel, rope_axes_dim=(8, 8), **COGVIEW_LIKE)),
    )
]
