"""Wan, HunyuanVideo, CogVideoX, LTX-Video, Mochi, Flux, SD3, PixArt."""

from __future__ import annotations

import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from support.tiny_transformers.base import (
    BATCH,
    GRID,
    TEXT,
    Inputs,
    TinyTransformer,
    noise,
    padding,
    ready,
    touch_latents,
    touch_words,
)
from torch import nn


def wan() -> nn.Module:
    torch.manual_seed(0)
    return ready(
        WanTransformer3DModel(*((1, 2, 2), 2, 16, 8, 8, 16, 32, 64, 3), rope_max_seq_len=64)
    )


def wan_inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, 8, 3, 8, 12),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": noise(BATCH, 7, 16, seed=1),
    }


def hunyuan_video() -> nn.Module:
    torch.manual_seed(0)
    return ready(
        HunyuanVideoTransformer3DModel(
            *(4, 4, 2, 10, 2, 1, 1, 2.0, 2, 1),
            text_embed_dim=16,
            pooled_projection_dim=16,
            rope_axes_dim=(2, 4, 4),
        )
    )


def hunyuan_video_inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, 4, 3, 8, 12),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": noise(BATCH, 7, 16, seed=1),
        "encoder_attention_mask": padding(),
        "pooled_projections": noise(BATCH, 16, seed=2),
        "guidance": torch.tensor([6000.0, 6000.0]),
    }


ROWS = [
    TinyTransformer("wan", wan, wan_inputs, touch_latents((1, 2, 2)), GRID, 3),
    TinyTransformer(
        "hunyuan-video",
        hunyuan_video,
        hunyuan_video_inputs,
        touch_latents((1, 2, 2)),
        GRID,
        3,
        TEXT,
        touch_words,
    ),
]
