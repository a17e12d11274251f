"""Tiny HunyuanImage."""

from __future__ import annotations

from diffusers import HunyuanImageTransformer2DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    IMAGE_GRID,
    VALID_TEXT,
    image_latents,
    noise,
    padding_mask,
)
from support.tiny_transformers.touch import touch_latents, touch_text

# Numbers of valid tokens of the second text.
GLYPHS = (1, 2)


def inputs() -> Inputs:
    return {
        **image_latents(),
        "encoder_attention_mask": padding_mask(),
        "encoder_hidden_states_2": noise(BATCH, 3, 16, seed=2),
        "encoder_attention_mask_2": padding_mask(3, GLYPHS),
    }


def touch_both_texts(inputs: Inputs, sample: int, token: int) -> None:
    """Change a token of the second text, which comes first, or of the first text."""
    if token < GLYPHS[sample]:
        inputs["encoder_hidden_states_2"][sample, token] += noise(16, seed=5)
    else:
        touch_text(inputs, sample, token - GLYPHS[sample])


ROWS = [
    TinyTransformer(
        "hunyuan-image",
        build(
            HunyuanImageTransformer2DModel,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=2,
            num_refiner_layers=1,
            patch_size=(2, 2),
            text_embed_dim=16,
            text_embed_2_dim=16,
            rope_axes_dim=(8, 8),
            **HEADS,
        ),
        inputs,
        touch_latents(),
        grid=IMAGE_GRID,
        layers=3,
        text=tuple(text + glyphs for text, glyphs in zip(VALID_TEXT, GLYPHS, strict=True)),
        touch_text=touch_both_texts,
    )
]
