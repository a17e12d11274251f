"""Tiny PixArt."""

from __future__ import annotations

from diffusers import PixArtTransformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import HEADS, IMAGE_GRID, image_latents, padding_mask
from support.tiny_transformers.touch import touch_latents


def inputs() -> Inputs:
    return {**image_latents(), "encoder_attention_mask": padding_mask().float()}


ROWS = [
    TinyTransformer(
        "pixart",
        build(
            PixArtTransformer2DModel,
            sample_size=8,
            in_channels=4,
            num_layers=2,
            cross_attention_dim=32,
            caption_channels=16,
            use_additional_conditions=False,
            **HEADS,
        ),
        inputs,
        touch_latents(),
        grid=IMAGE_GRID,
        layers=2,
    )
]
