"""Tiny Mochi."""

from __future__ import annotations

import torch
from diffusers import MochiTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    TEXT_TOKENS,
    TIMESTEP,
    VALID_TEXT,
    VIDEO_GRID,
    noise,
    padding_mask,
)
from support.tiny_transformers.touch import touch_latents, touch_text


def inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, 4, 3, 8, 12),
        "encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 16, seed=1),
        "timestep": torch.tensor(TIMESTEP),
        "encoder_attention_mask": padding_mask(),
    }


ROWS = [
    TinyTransformer(
        "mochi",
        build(
            MochiTransformer3DModel,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=4,
            text_embed_dim=16,
            time_embed_dim=4,
            max_sequence_length=TEXT_TOKENS,
            **HEADS,
        ),
        inputs,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=2 * BATCH,
        text=VALID_TEXT,
        touch_text=touch_text,
    )
]
