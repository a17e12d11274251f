"""Tiny Wan VACE."""

from __future__ import annotations

from diffusers import WanVACETransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import BATCH, VIDEO_GRID, noise, video_latents
from support.tiny_transformers.touch import touch_latents
from support.tiny_transformers.wan import WAN_LIKE


def inputs() -> Inputs:
    return {**video_latents(), "control_hidden_states": noise(BATCH, 6, 3, 8, 12, seed=2)}


ROWS = [
    TinyTransformer(
        "wan-vace",
        build(
            WanVACETransformer3DModel,
            in_channels=4,
            num_layers=3,
            vace_layers=[0, 2],
            vace_in_channels=6,
            **WAN_LIKE,
        ),
        inputs,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=5,
    )
]
