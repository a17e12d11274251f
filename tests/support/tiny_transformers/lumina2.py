"""Tiny Lumina 2."""

from __future__ import annotations

from diffusers import Lumina2Transformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build, scale_parameters
from support.tiny_transformers.inputs import (
    IMAGE_GRID,
    ROPE_AXES,
    VALID_TEXT,
    image_latents,
    padding_mask,
)
from support.tiny_transformers.touch import touch_latents, touch_text
from torch import nn

random_transformer = build(
    Lumina2Transformer2DModel,
    in_channels=4,
    hidden_size=32,
    num_layers=2,
    num_refiner_layers=1,
    num_attention_heads=2,
    num_kv_heads=1,
    multiple_of=16,
    axes_dim_rope=ROPE_AXES,
    axes_lens=(32, 16, 16),
    cap_feat_dim=16,
)


def transformer() -> nn.Module:
    """Return a transformer whose refiner spreads a text token little."""
    return scale_parameters(random_transformer(), "context_refiner.0.norm2", 0.1)


def inputs() -> Inputs:
    return {**image_latents(), "encoder_attention_mask": padding_mask()}


ROWS = [
    TinyTransformer(
        "lumina2",
        transformer,
        inputs,
        touch_latents(),
        grid=IMAGE_GRID,
        layers=2,
        text=VALID_TEXT,
        touch_text=touch_text,
    )
]
