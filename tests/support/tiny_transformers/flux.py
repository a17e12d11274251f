"""Tiny Flux, with Kontext's reference image."""

from __future__ import annotations

from diffusers import FluxTransformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    FULL_TEXT,
    HEADS,
    ROPE_AXES,
    TWO_IMAGES,
    flux_like,
    noise,
)
from support.tiny_transformers.touch import touch_text, touch_tokens

FLUX_LIKE = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "joint_attention_dim": 16,
    "axes_dims_rope": ROPE_AXES,
    **HEADS,
}
"""Config of the families that are made like Flux: one dual-stream block and one single-stream block."""


def inputs() -> Inputs:
    return {**flux_like(TWO_IMAGES), "pooled_projections": noise(BATCH, 16, seed=2)}


ROWS = [
    TinyTransformer(
        "flux",
        build(
            FluxTransformer2DModel,
            **{**FLUX_LIKE, "num_single_layers": 2},
            pooled_projection_dim=16,
        ),
        inputs,
        touch_tokens(TWO_IMAGES),
        grid=TWO_IMAGES,
        layers=3,
        text=FULL_TEXT,
        touch_text=touch_text,
    )
]
