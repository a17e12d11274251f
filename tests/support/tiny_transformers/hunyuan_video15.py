"""Tiny HunyuanVideo 1.5, without and with an image."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import HunyuanVideo15Transformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    ROPE_AXES,
    TEXT_TOKENS,
    TIMESTEP,
    VALID_TEXT,
    VIDEO_GRID,
    noise,
    padding_mask,
)
from support.tiny_transformers.touch import touch_latents

IMAGE, GLYPHS = 3, ((0, 0, 0, 0), (1, 0, 1, 1))
VALID = tuple(text + sum(glyphs) for text, glyphs in zip(VALID_TEXT, GLYPHS, strict=True))

transformer = build(
    HunyuanVideo15Transformer3DModel,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    num_refiner_layers=1,
    mlp_ratio=2.0,
    text_embed_dim=16,
    text_embed_2_dim=12,
    image_embed_dim=8,
    rope_axes_dim=ROPE_AXES,
    **HEADS,
)


def inputs(image: bool) -> Inputs:
    return {
        "hidden_states": noise(BATCH, 4, *VIDEO_GRID),
        "timestep": torch.tensor(TIMESTEP),
        "encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 16, seed=1),
        "encoder_attention_mask": padding_mask(),
        "encoder_hidden_states_2": noise(BATCH, len(GLYPHS[0]), 12, seed=2),
        "encoder_attention_mask_2": torch.tensor(GLYPHS),
        "image_embeds": image * noise(BATCH, IMAGE, 8, seed=3),
    }


def touch_valid(image: bool, inputs: Inputs, sample: int, token: int) -> None:
    """Change one channel of a valid token of image, glyphs or text, because the first layers may be norms."""
    tokens = [("image_embeds", i) for i in range(IMAGE * image)]
    for suffix in ("_2", ""):
        valid = inputs[f"encoder_attention_mask{suffix}"][sample].nonzero().flatten().tolist()
        tokens += [(f"encoder_hidden_states{suffix}", i) for i in valid]
    name, index = tokens[token]
    inputs[name][sample, index, 0] += 3


ROWS = [
    TinyTransformer(
        "hunyuan-video-1.5",
        transformer,
        partial(inputs, image=image),
        touch_latents((1, 1, 1)),
        grid=VIDEO_GRID,
        layers=2,
        text=tuple(tokens + IMAGE * image for tokens in VALID),
        touch_text=partial(touch_valid, image),
    )
    for image in (False, True)
]
