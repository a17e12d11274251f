"""Tiny Krea 2."""

from __future__ import annotations

import torch
from diffusers import Krea2Transformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    IMAGE_GRID,
    ROPE_AXES,
    TEXT_TOKENS,
    VALID_TEXT,
    noise,
    position_ids,
    visual_tokens,
)
from support.tiny_transformers.touch import touch_tokens


def inputs() -> Inputs:
    """Return inputs with padding before the last text tokens."""
    mask = torch.ones(BATCH, TEXT_TOKENS, dtype=torch.bool)
    mask[1, 3 : 3 + TEXT_TOKENS - VALID_TEXT[1]] = False
    return {
        **visual_tokens(IMAGE_GRID),
        "encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 2, 16, seed=1),
        "encoder_attention_mask": mask,
        "position_ids": torch.cat([torch.zeros(TEXT_TOKENS, 3), position_ids(IMAGE_GRID)]),
    }


def touch_valid_text(inputs: Inputs, sample: int, token: int) -> None:
    valid = inputs["encoder_attention_mask"][sample].nonzero().flatten()
    inputs["encoder_hidden_states"][sample, valid[token]] += 1


ROWS = [
    TinyTransformer(
        "krea-2",
        build(
            Krea2Transformer2DModel,
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=16,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=ROPE_AXES,
        ),
        inputs,
        touch_tokens(IMAGE_GRID),
        grid=IMAGE_GRID,
        layers=2,
        text=VALID_TEXT,
        touch_text=touch_valid_text,
    )
]
