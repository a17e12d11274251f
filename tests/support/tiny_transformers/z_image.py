"""Tiny Z-Image, and the transformer of Z-Image Omni."""

from __future__ import annotations

import torch
from diffusers import ZImageTransformer2DModel
from support.tiny_transformers.base import Inputs, Position, WithParameters, build
from support.tiny_transformers.inputs import BATCH, ROPE_AXES, noise

GRID = (1, 8, 11)

# The image has 88 tokens and is padded to 96.
IMAGE_PADDING = 8
PADDED_IMAGE = 96

# The captions have 7 and 37 tokens and are padded to 32 and 64.
CAPTIONS = (7, 37)
PADDED_CAPTIONS = (32, 64)

CONFIG = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 16,
    "axes_dims": list(ROPE_AXES),
    "axes_lens": [128, 16, 16],
}
omni = build(ZImageTransformer2DModel, siglip_feat_dim=8, **CONFIG)


def inputs() -> Inputs:
    """Return inputs with parameters that hold a different padding token for each position."""
    return {
        "x": list(noise(BATCH, 4, 1, 2 * GRID[1], 2 * GRID[2])),
        "t": torch.tensor([0.5, 0.5]),
        "cap_feats": [noise(length, 16, seed=length) for length in CAPTIONS],
        "x_pad_token": noise(BATCH * PADDED_IMAGE, 32, seed=3),
        "cap_pad_token": noise(sum(PADDED_CAPTIONS), 32, seed=4),
    }


def touch(inputs: Inputs, sample: int, position: Position) -> None:
    _, row, column = position
    inputs["x"][sample][:, 0, 2 * row, 2 * column] += 1


def touch_after_image(inputs: Inputs, sample: int, token: int) -> None:
    """Change a token of the image's padding, of the caption, or of the caption's padding."""
    caption_token = token - IMAGE_PADDING
    if caption_token < 0:
        row = (sample + 1) * PADDED_IMAGE + caption_token
        inputs["x_pad_token"][row] += noise(32, seed=5)
    elif caption_token < CAPTIONS[sample]:
        inputs["cap_feats"][sample][caption_token] += noise(16, seed=5)
    else:
        row = sum(PADDED_CAPTIONS[:sample]) + caption_token
        inputs["cap_pad_token"][row] += noise(32, seed=5)


ROWS = [
    WithParameters(
        "z-image",
        build(ZImageTransformer2DModel, **CONFIG),
        inputs,
        touch,
        grid=GRID,
        layers=2,
        text=tuple(IMAGE_PADDING + caption for caption in PADDED_CAPTIONS),
        touch_text=touch_after_image,
    )
]
