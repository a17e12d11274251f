"""Tiny HiDream-Image, with latents and with patches."""

from __future__ import annotations

import torch
from diffusers import HiDreamImageTransformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    IMAGE_GRID,
    image_latents,
    noise,
    position_ids,
)
from support.tiny_transformers.touch import touch_latents, touch_tokens

IMAGE = IMAGE_GRID[1] * IMAGE_GRID[2]
PADDING = 12
T5, LLAMA = 4, 3

transformer = build(
    HiDreamImageTransformer2DModel,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=1,
    num_single_layers=1,
    caption_channels=[12, 16],
    text_emb_dim=8,
    num_routed_experts=2,
    num_activated_experts=1,
    axes_dims_rope=(8, 4, 4),
    max_resolution=(12, 16),
    llama_layers=[0, 1],
    **HEADS,
)


def text_inputs() -> Inputs:
    return {
        "timesteps": torch.tensor([500, 500]),
        "encoder_hidden_states_t5": noise(BATCH, T5, 12, seed=1),
        "encoder_hidden_states_llama3": noise(2, BATCH, LLAMA, 16, seed=2),
        "pooled_embeds": noise(BATCH, 8, seed=3),
    }


def latent_inputs() -> Inputs:
    return {"hidden_states": image_latents()["hidden_states"], **text_inputs()}


def patch_inputs() -> Inputs:
    """Return patches whose last ones are padding that takes part in the attention."""
    total = IMAGE + PADDING
    ids = torch.zeros(total, 3)
    ids[:IMAGE] = position_ids(IMAGE_GRID)
    return {
        "hidden_states": noise(BATCH, total, 16),
        "hidden_states_masks": (torch.arange(total) < IMAGE).float().expand(BATCH, -1),
        "img_ids": ids.expand(BATCH, -1, -1),
        "img_sizes": [IMAGE_GRID[1:]] * BATCH,
        **text_inputs(),
    }


def touch_text(inputs: Inputs, sample: int, token: int) -> None:
    """Change a token of T5, of Llama's last layer, or of the Llama layer of the first block."""
    if token < T5:
        inputs["encoder_hidden_states_t5"][sample, token] += 1
    else:
        layer, token = divmod(token - T5, LLAMA)
        inputs["encoder_hidden_states_llama3"][1 - layer, sample, token] += 1


def touch_padding_or_text(inputs: Inputs, sample: int, token: int) -> None:
    """Change a token of padding or of text."""
    if token < PADDING:
        inputs["hidden_states"][sample, IMAGE + token] += 1
    else:
        touch_text(inputs, sample, token - PADDING)


TEXT = T5 + 2 * LLAMA
ROWS = [
    TinyTransformer(
        "hidream-image",
        transformer,
        latent_inputs,
        touch_latents(),
        grid=IMAGE_GRID,
        layers=2,
        text=(TEXT, TEXT),
        touch_text=touch_text,
    ),
    TinyTransformer(
        "hidream-image",
        transformer,
        patch_inputs,
        touch_tokens(IMAGE_GRID),
        grid=IMAGE_GRID,
        layers=2,
        text=(PADDING + TEXT, PADDING + TEXT),
        touch_text=touch_padding_or_text,
    ),
]
