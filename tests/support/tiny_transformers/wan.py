"""Tiny Wan."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import BATCH, HEADS, VIDEO_GRID, noise
from support.tiny_transformers.touch import touch_latents

WAN_LIKE = {
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "rope_max_seq_len": 64,
    **HEADS,
}
"""Config of the families that are made like Wan."""


def inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, 8, 3, 8, 12),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": noise(BATCH, 7, 16, seed=1),
    }


ROWS = [
    TinyTransformer(
        "wan",
        build(
            WanTransformer3DModel,
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=8,
            out_channels=8,
            text_dim=16,
            freq_dim=32,
            ffn_dim=64,
            num_layers=3,
            rope_max_seq_len=64,
        ),
        inputs,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=3,
    )
]
