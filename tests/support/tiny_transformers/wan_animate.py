"""Tiny Wan-Animate and ChronoEdit."""

from __future__ import annotations

from diffusers import ChronoEditTransformer3DModel, WanAnimateTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import BATCH, VIDEO_GRID, noise, video_latents
from support.tiny_transformers.touch import touch_latents
from support.tiny_transformers.wan import WAN_LIKE


def animate_inputs() -> Inputs:
    return {
        **video_latents(12),
        "pose_hidden_states": noise(BATCH, 4, 2, 8, 12, seed=2),
        "face_pixel_values": noise(BATCH, 3, 5, 16, 16, seed=3),
    }


ROWS = [
    TinyTransformer(
        "wan-animate",
        build(
            WanAnimateTransformer3DModel,
            in_channels=12,
            latent_channels=4,
            num_layers=2,
            image_dim=None,
            motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
            motion_encoder_size=16,
            motion_style_dim=8,
            motion_dim=4,
            motion_encoder_dim=8,
            face_encoder_hidden_dim=8,
            face_encoder_num_heads=2,
            inject_face_latents_blocks=2,
            **WAN_LIKE,
        ),
        animate_inputs,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=2,
    ),
    TinyTransformer(
        "chronoedit",
        build(ChronoEditTransformer3DModel, in_channels=4, num_layers=2, **WAN_LIKE),
        video_latents,
        touch_latents(),
        grid=VIDEO_GRID,
        layers=2,
    ),
]
