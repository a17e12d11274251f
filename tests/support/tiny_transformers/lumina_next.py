"""Tiny Lumina-Next."""

from __future__ import annotations

import torch
from diffusers import LuminaNextDiT2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import IMAGE_GRID, image_latents, noise, padding_mask
from support.tiny_transformers.touch import touch_latents


def inputs() -> Inputs:
    return {
        **image_latents(),
        "encoder_mask": padding_mask(),
        "image_rotary_emb": torch.polar(torch.ones(8, 8, 8), noise(8, 8, 8, seed=2)),
        "cross_attention_kwargs": {},
    }


ROWS = [
    TinyTransformer(
        "lumina-next",
        build(
            LuminaNextDiT2DModel,
            sample_size=8,
            hidden_size=64,
            num_layers=2,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=8,
            cross_attention_dim=16,
        ),
        inputs,
        touch_latents(),
        grid=IMAGE_GRID,
        layers=2,
    )
]
