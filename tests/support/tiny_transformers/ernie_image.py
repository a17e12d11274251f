"""Tiny ERNIE-Image."""

from __future__ import annotations

import torch
from diffusers import ErnieImageTransformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import IMAGE_GRID, ROPE_AXES, VALID_TEXT, image_latents
from support.tiny_transformers.touch import touch_arguments, touch_latents


def inputs() -> Inputs:
    arguments = image_latents()
    text = arguments.pop("encoder_hidden_states")
    return {**arguments, "text_bth": text, "text_lens": torch.tensor(VALID_TEXT)}


ROWS = [
    TinyTransformer(
        "ernie-image",
        build(
            ErnieImageTransformer2DModel,
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=32,
            in_channels=4,
            out_channels=4,
            patch_size=2,
            text_in_dim=16,
            rope_axes_dim=ROPE_AXES,
        ),
        inputs,
        touch_latents(),
        grid=IMAGE_GRID,
        layers=2,
        text=VALID_TEXT,
        touch_text=touch_arguments("text_bth"),
    )
]
