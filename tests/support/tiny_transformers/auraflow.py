"""Tiny AuraFlow."""

from __future__ import annotations

from diffusers import AuraFlowTransformer2DModel
from support.tiny_transformers.base import Inputs, WithParameters, build, scale_parameters
from support.tiny_transformers.inputs import (
    HEADS,
    IMAGE_GRID,
    TEXT_TOKENS,
    image_latents,
    noise,
)
from support.tiny_transformers.touch import touch_latents, touch_text
from torch import nn

REGISTERS = 8

random_transformer = build(
    AuraFlowTransformer2DModel,
    sample_size=8,
    num_mmdit_layers=1,
    num_single_dit_layers=2,
    joint_attention_dim=16,
    caption_projection_dim=32,
    pos_embed_max_size=64,
    **HEADS,
)


def transformer() -> nn.Module:
    """Return a transformer with large gates, in which attention has a visible effect."""
    return scale_parameters(random_transformer(), "norm1", 10.0)


def inputs() -> Inputs:
    return {**image_latents(), "register_tokens": noise(1, REGISTERS, 32, seed=2)}


def touch_register_or_text(inputs: Inputs, sample: int, token: int) -> None:
    """Change a register, which all samples share, or a token of text."""
    if token < REGISTERS:
        inputs["register_tokens"][0, token] += noise(32, seed=5)
    else:
        touch_text(inputs, sample, token - REGISTERS)


ROWS = [
    WithParameters(
        "auraflow",
        transformer,
        inputs,
        touch_latents(),
        grid=IMAGE_GRID,
        layers=3,
        text=(REGISTERS + TEXT_TOKENS, REGISTERS + TEXT_TOKENS),
        touch_text=touch_register_or_text,
    )
]
