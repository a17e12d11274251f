"""Tiny HunyuanVideo."""

from __future__ import annotations

import torch
from diffusers import HunyuanVideoTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import BATCH, VALID_TEXT, VIDEO_GRID, noise, padding_mask
from support.tiny_transformers.touch import touch_latents, touch_text


def inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, 4, 3, 8, 12),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": noise(BATCH, 7, 16, seed=1),
        "encoder_attention_mask": padding_mask(),
        "pooled_projections": noise(BATCH, 16, seed=2),
        "guidance": torch.tensor([6000.0, 6000.0]),
    }


ROWS = [
    TinyTransformer(
        "hunyuan-video",
        build(
            HunyuanVideoTransformer3DModel,
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=2,
            num_single_layers=1,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            patch_size=2,
            patch_size_t=1,
            text_embed_dim=16,
            pooled_projection_dim=16,
            rope_axes_dim=(2, 4, 4),
        ),
        inputs,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=3,
        text=VALID_TEXT,
        touch_text=touch_text,
    )
]
