"""Tiny GLM-Image."""

from __future__ import annotations

import torch
from diffusers import GlmImageTransformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.cogview import COGVIEW_LIKE, image_sizes
from support.tiny_transformers.inputs import BATCH, FULL_TEXT, IMAGE_GRID, image_latents
from support.tiny_transformers.touch import touch_latents, touch_text


def inputs() -> Inputs:
    prior = torch.arange(IMAGE_GRID[1] * IMAGE_GRID[2]).expand(BATCH, -1) % 8
    sizes = image_sizes()
    return {
        **image_latents(),
        "target_size": sizes["target_size"],
        "crop_coords": sizes["crop_coords"],
        "prior_token_id": prior,
        "prior_token_drop": torch.zeros_like(prior, dtype=torch.bool),
    }


ROWS = [
    TinyTransformer(
        "glm-image",
        build(GlmImageTransformer2DModel, prior_vq_quantizer_codebook_size=8, **COGVIEW_LIKE),
        inputs,
        touch_latents(),
        grid=IMAGE_GRID,
        layers=2,
        text=FULL_TEXT,
        touch_text=touch_text,
    )
]
