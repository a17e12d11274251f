"""Tiny JoyImage Edit and JoyImage Edit Plus."""

from __future__ import annotations

from diffusers import JoyImageEditPlusTransformer3DModel, JoyImageEditTransformer3DModel
from support.tiny_transformers.base import Inputs, Position, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    FULL_TEXT,
    IMAGE_GRID,
    ROPE_AXES,
    TWO_IMAGES,
    VALID_TEXT,
    image_latents,
    noise,
    padding_mask,
)
from support.tiny_transformers.touch import touch_text, touch_tokens

THREE_IMAGES = (3, 6, 8)

CONFIG = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "mlp_width_ratio": 2.0,
    "num_layers": 2,
    "rope_dim_list": list(ROPE_AXES),
}


def edit_inputs() -> Inputs:
    images, height, width = THREE_IMAGES
    return {
        **image_latents(),
        "hidden_states": noise(BATCH, images, 4, 1, 2 * height, 2 * width),
    }


def touch_edit(inputs: Inputs, sample: int, position: Position) -> None:
    """Change a token of an image; the last image is the first frame."""
    frame, row, column = position
    inputs["hidden_states"][sample, frame - 1, :, 0, 2 * row, 2 * column] += 1


def edit_plus_inputs() -> Inputs:
    images, height, width = TWO_IMAGES
    return {
        **image_latents(),
        "hidden_states": noise(BATCH, images * height * width, 4, 1, 2, 2),
        "encoder_hidden_states_mask": padding_mask().long(),
        "shape_list": [[IMAGE_GRID, IMAGE_GRID]] * BATCH,
    }


EDIT_PLUS = TinyTransformer(
    "joyimage-edit-plus",
    build(JoyImageEditPlusTransformer3DModel, **CONFIG),
    edit_plus_inputs,
    touch_tokens(TWO_IMAGES),
    grid=TWO_IMAGES,
    layers=2,
    text=VALID_TEXT,
    touch_text=touch_text,
)

ROWS = [
    TinyTransformer(
        "joyimage-edit",
        build(JoyImageEditTransformer3DModel, **CONFIG),
        edit_inputs,
        touch_edit,
        grid=THREE_IMAGES,
        layers=2,
        text=FULL_TEXT,
        touch_text=touch_text,
    ),
    EDIT_PLUS,
]
