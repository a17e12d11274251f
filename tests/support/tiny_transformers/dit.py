"""Tiny DiT."""

from __future__ import annotations

import torch
from diffusers import DiTTransformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import BATCH, HEADS, noise
from support.tiny_transformers.touch import touch_latents

SQUARE = (1, 7, 7)


def inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, 4, 2 * SQUARE[1], 2 * SQUARE[2]),
        "timestep": torch.tensor([500, 500]),
        "class_labels": torch.tensor([3, 5]),
    }


ROWS = [
    TinyTransformer(
        "dit",
        build(
            DiTTransformer2DModel,
            in_channels=4,
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=10,
            **HEADS,
        ),
        inputs,
        touch_latents(),
        grid=SQUARE,
        layers=2,
    )
]
