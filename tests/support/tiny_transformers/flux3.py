"""Tiny Flux 3, with a reference image of the same size."""

from __future__ import annotations

import diffusers
import torch
from support.tiny_transformers.base import Inputs, Position, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    FULL_TEXT,
    HEADS,
    IMAGE_GRID,
    TEXT_TOKENS,
    TWO_IMAGES,
    noise,
    position_ids,
    visual_tokens,
)
from support.tiny_transformers.touch import touch_text


def inputs() -> Inputs:
    image = torch.nn.functional.pad(position_ids(IMAGE_GRID), (0, 1)) * 1.5
    text = torch.nn.functional.pad(torch.arange(TEXT_TOKENS).float()[:, None], (3, 0))
    return {
        **visual_tokens(IMAGE_GRID),
        "img_ids": image,
        "txt_ids": text,
        "image_cond_hidden_states": noise(BATCH, IMAGE_GRID[1] * IMAGE_GRID[2], 16, seed=2),
        "image_cond_ids": image - torch.tensor([0.0, 0.0, 0.0, 1.0]),
    }


def touch(inputs: Inputs, sample: int, position: Position) -> None:
    """Change a token of the image, which is frame 0, or of the reference."""
    frame, row, column = position
    name = "image_cond_hidden_states" if frame else "hidden_states"
    inputs[name][sample, row * IMAGE_GRID[2] + column] += 1


ROWS = [
    TinyTransformer(
        "flux-3",
        build(
            getattr(diffusers, "Flux3Transformer2DModel", None),
            in_channels=16,
            cond_in_channels=16,
            num_layers=1,
            num_single_layers=2,
            joint_attention_dim=16,
            timestep_channels=16,
            mlp_ratio=2.0,
            axes_dims_rope=(4, 4, 4, 4),
            **HEADS,
        ),
        inputs,
        touch,
        grid=TWO_IMAGES,
        layers=2,
        text=FULL_TEXT,
        touch_text=touch_text,
    )
]
