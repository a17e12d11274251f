"""Tiny HunyuanVideo-Framepack."""

from __future__ import annotations

import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    ROPE_AXES,
    VALID_TEXT,
    VIDEO_GRID,
    noise,
    padding_mask,
    video_latents,
)
from support.tiny_transformers.touch import touch_arguments, touch_latents

# History of 2, 6 and 48 tokens.
HISTORY = 56
IMAGE = 3


def inputs() -> Inputs:
    history = {
        "clean": noise(BATCH, 4, 2, 8, 12, seed=3),
        "history_2x": noise(BATCH, 4, 2, 8, 12, seed=4),
        "history_4x": noise(BATCH, 4, 3, 8, 12, seed=5),
    }
    return {
        **video_latents(),
        "encoder_attention_mask": padding_mask(),
        "pooled_projections": noise(BATCH, 16, seed=2),
        "image_embeds": noise(BATCH, IMAGE, 8, seed=6),
        "guidance": torch.tensor([6000.0, 6000.0]),
        "indices_latents": torch.arange(3) + 7,
        **{f"latents_{name}": value for name, value in history.items()},
        **{
            f"indices_latents_{name}": torch.arange(value.shape[2])
            for name, value in history.items()
        },
    }


def touch_other(inputs: Inputs, sample: int, token: int) -> None:
    """Change the first token of history, or a token of image or text."""
    if token == 0:
        inputs["latents_history_4x"][sample, :, 0, 0, 0] += 1
    else:
        touch_arguments("image_embeds", "encoder_hidden_states")(inputs, sample, token - HISTORY)


ROWS = [
    TinyTransformer(
        "hunyuan-video-framepack",
        build(
            HunyuanVideoFramepackTransformer3DModel,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=16,
            pooled_projection_dim=16,
            rope_axes_dim=ROPE_AXES,
            has_image_proj=True,
            image_proj_dim=8,
            has_clean_x_embedder=True,
            **HEADS,
        ),
        inputs,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=2,
        text=tuple(HISTORY + IMAGE + text for text in VALID_TEXT),
        touch_text=touch_other,
    )
]
