"""Tiny HunyuanDiT."""

from __future__ import annotations

from diffusers import HunyuanDiT2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    IMAGE_GRID,
    TEXT_TOKENS,
    image_latents,
    noise,
    padding_mask,
)
from support.tiny_transformers.touch import touch_latents


def inputs() -> Inputs:
    angles = noise(IMAGE_GRID[1] * IMAGE_GRID[2], 16, seed=3)
    return {
        **image_latents(),
        "text_embedding_mask": padding_mask(),
        "encoder_hidden_states_t5": noise(BATCH, 3, 16, seed=2),
        "text_embedding_mask_t5": padding_mask(3, (3, 2)),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


ROWS = [
    TinyTransformer(
        "hunyuan-dit",
        build(
            HunyuanDiT2DModel,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=32,
            num_layers=4,
            mlp_ratio=2.0,
            cross_attention_dim=16,
            cross_attention_dim_t5=16,
            pooled_projection_dim=8,
            text_len=TEXT_TOKENS,
            text_len_t5=3,
            use_style_cond_and_image_meta_size=False,
            **HEADS,
        ),
        inputs,
        touch_latents(),
        grid=IMAGE_GRID,
        layers=4,
    )
]
