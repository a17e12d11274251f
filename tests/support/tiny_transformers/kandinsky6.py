"""Tiny Kandinsky 6."""

from __future__ import annotations

import diffusers
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import BATCH, ROPE_AXES, VIDEO_GRID, noise, video_latents
from support.tiny_transformers.touch import touch_channels_last


def inputs() -> Inputs:
    return {
        **video_latents(),
        "hidden_states": noise(BATCH, 3, 8, 12, 4),
        "pooled_projections": noise(BATCH, 8, seed=2),
        "audio_hidden_states": noise(BATCH, 5, 4, seed=3),
    }


ROWS = [
    TinyTransformer(
        "kandinsky-6",
        build(
            getattr(diffusers, "Kandinsky6Transformer3DModel", None),
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=8,
            time_dim=16,
            model_dim=32,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=ROPE_AXES,
            visual_cond=False,
            in_audio_dim=4,
            out_audio_dim=4,
        ),
        inputs,
        touch_channels_last,
        grid=VIDEO_GRID,
        layers=2,
    )
]
