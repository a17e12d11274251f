"""Tiny Latte."""

from __future__ import annotations

from diffusers import LatteTransformer3DModel
from support.tiny_transformers.base import Inputs, Position, TinyTransformer, build
from support.tiny_transformers.inputs import BATCH, HEADS, IMAGE_GRID, image_latents, noise


def inputs() -> Inputs:
    latents = noise(BATCH, 4, 2, 2 * IMAGE_GRID[1], 2 * IMAGE_GRID[2])
    return {**image_latents(), "hidden_states": latents}


def touch(inputs: Inputs, frame: int, position: Position) -> None:
    """Change a frame of the first sample, because its frames are the first samples of an attention call."""
    _, row, column = position
    inputs["hidden_states"][0, :, frame, 2 * row, 2 * column] += 1


ROWS = [
    TinyTransformer(
        "latte",
        build(
            LatteTransformer3DModel,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=32,
            sample_size=16,
            patch_size=2,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            caption_channels=16,
            video_length=2,
            **HEADS,
        ),
        inputs,
        touch,
        grid=IMAGE_GRID,
        layers=2,
    )
]
