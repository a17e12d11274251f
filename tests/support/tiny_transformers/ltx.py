"""Tiny LTX-Video, LTX-2 and LTX-2.3."""

from __future__ import annotations

import torch
from diffusers import LTX2VideoTransformer3DModel, LTXVideoTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    TEXT_TOKENS,
    TIMESTEP,
    VIDEO_GRID,
    noise,
    padding_mask,
)
from support.tiny_transformers.touch import touch_tokens

TOKENS = VIDEO_GRID[0] * VIDEO_GRID[1] * VIDEO_GRID[2]

LTX2 = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 32,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "num_layers": 2,
    "caption_channels": 16,
}


def inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, TOKENS, 4),
        "encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 16, seed=1),
        "timestep": torch.tensor(TIMESTEP),
        "encoder_attention_mask": padding_mask(),
        **dict(zip(("num_frames", "height", "width"), VIDEO_GRID, strict=True)),
    }


def ltx2_inputs() -> Inputs:
    """Return inputs with as many audio tokens as video tokens."""
    return {
        **inputs(),
        "audio_hidden_states": noise(BATCH, TOKENS, 4, seed=2),
        "audio_encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 16, seed=3),
        "audio_encoder_attention_mask": padding_mask(),
        "audio_num_frames": TOKENS,
    }


def ltx23_inputs() -> Inputs:
    return {
        **ltx2_inputs(),
        "encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 32, seed=1),
        "sigma": torch.tensor(TIMESTEP),
        "use_cross_timestep": True,
    }


ROWS = [
    TinyTransformer(
        "ltx",
        build(
            LTXVideoTransformer3DModel,
            in_channels=4,
            out_channels=4,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=16,
            **HEADS,
        ),
        inputs,
        touch_tokens(VIDEO_GRID),
        grid=VIDEO_GRID,
        layers=2,
    ),
    TinyTransformer(
        "ltx-2",
        build(LTX2VideoTransformer3DModel, **LTX2),
        ltx2_inputs,
        touch_tokens(VIDEO_GRID),
        grid=VIDEO_GRID,
        layers=2,
    ),
    # LTX-2.3 has gated heads, modulated text, and a processor that can perturb attention.
    TinyTransformer(
        "ltx-2",
        build(
            LTX2VideoTransformer3DModel,
            **LTX2,
            gated_attn=True,
            audio_gated_attn=True,
            cross_attn_mod=True,
            audio_cross_attn_mod=True,
            rope_type="split",
            use_prompt_embeddings=False,
            perturbed_attn=True,
        ),
        ltx23_inputs,
        touch_tokens(VIDEO_GRID),
        grid=VIDEO_GRID,
        layers=2,
    ),
]
