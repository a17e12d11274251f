"""Tiny Flux 2, with two reference images."""

from __future__ import annotations

import torch
from diffusers import Flux2Transformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    FULL_TEXT,
    HEADS,
    TEXT_TOKENS,
    VIDEO_GRID,
    position_ids,
    visual_tokens,
)
from support.tiny_transformers.touch import touch_text, touch_tokens

# An image and two references.
GRID = VIDEO_GRID


def inputs() -> Inputs:
    images = torch.nn.functional.pad(position_ids(GRID) * torch.tensor([10, 1, 1]), (0, 1))
    text = torch.cartesian_prod(*[torch.arange(size) for size in (1, 1, 1, TEXT_TOKENS)])
    return {
        **visual_tokens(GRID),
        "img_ids": images.expand(BATCH, -1, -1),
        "txt_ids": text.expand(BATCH, -1, -1),
        "guidance": torch.tensor([4.0, 4.0]),
    }


ROWS = [
    TinyTransformer(
        "flux2",
        build(
            Flux2Transformer2DModel,
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            joint_attention_dim=16,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            **HEADS,
        ),
        inputs,
        touch_tokens(GRID),
        grid=GRID,
        layers=3,
        text=FULL_TEXT,
        touch_text=touch_text,
    )
]
