"""Tiny Helios."""

from __future__ import annotations

import torch
from diffusers import HeliosTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    ROPE_AXES,
    VIDEO_GRID,
    noise,
    video_latents,
)
from support.tiny_transformers.touch import touch_latents


def inputs() -> Inputs:
    frames = {"short": 1, "mid": 2, "long": 3}
    return {
        **video_latents(),
        "indices_hidden_states": torch.arange(3).expand(BATCH, -1) + 6,
        **{f"latents_history_{n}": noise(BATCH, 4, f, 8, 12, seed=f) for n, f in frames.items()},
        **{
            f"indices_latents_history_{name}": torch.arange(count).expand(BATCH, -1)
            for name, count in frames.items()
        },
    }


def touch_history(inputs: Inputs, sample: int, token: int) -> None:
    """Change the first token of the long history, or the last token of the short one."""
    if token == 0:
        inputs["latents_history_long"][sample, :, 0, 0, 0] += 1
    else:
        inputs["latents_history_short"][sample, :, 0, 6, 10] += 1


ROWS = [
    TinyTransformer(
        "helios",
        build(
            HeliosTransformer3DModel,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_dim=ROPE_AXES,
            **HEADS,
        ),
        inputs,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=2,
        text=(32, 32),
        touch_text=touch_history,
    )
]
