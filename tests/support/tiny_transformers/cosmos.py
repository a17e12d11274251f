"""Tiny Cosmos 1 and Cosmos 2.5."""

from __future__ import annotations

import torch
from diffusers import CosmosTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import BATCH, HEADS, VIDEO_GRID, noise, video_latents
from support.tiny_transformers.touch import touch_latents

CONFIG = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (4, 16, 16),
}


def inputs() -> Inputs:
    return {**video_latents(), "fps": 24, "padding_mask": torch.zeros(1, 1, 8, 12)}


def inputs_25() -> Inputs:
    """Return inputs with a timestep for each frame, and an image beside the text."""
    arguments = inputs()
    text, image = arguments["encoder_hidden_states"], noise(BATCH, 5, 8, seed=2)
    timestep = arguments["timestep"].view(BATCH, 1, 1, 1, 1).repeat(1, 1, VIDEO_GRID[0], 1, 1)
    return {**arguments, "encoder_hidden_states": (text, image), "timestep": timestep}


ROWS = [
    TinyTransformer(
        "cosmos",
        build(CosmosTransformer3DModel, **CONFIG),
        inputs,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=2,
    ),
    TinyTransformer(
        "cosmos",
        build(
            CosmosTransformer3DModel,
            **CONFIG,
            extra_pos_embed_type=None,
            use_crossattn_projection=True,
            crossattn_proj_in_channels=16,
            encoder_hidden_states_channels=16,
            img_context_dim_in=8,
            img_context_dim_out=32,
        ),
        inputs_25,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=2,
    ),
]
