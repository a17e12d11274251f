"""Transformers made like Wan: VACE, SkyReels V2, Wan-Animate, ChronoEdit, AnyFlow."""

from __future__ import annotations

import torch
from diffusers import (
    AnyFlowTransformer3DModel,
    ChronoEditTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanVACETransformer3DModel,
)
from support.tiny_transformers.base import (
    BATCH,
    GRID,
    Inputs,
    TinyTransformer,
    noise,
    touch_latents,
)
from support.tiny_transformers.shared import HEADS, build, frames_first, touch_frames_first, video

WAN = {
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "rope_max_seq_len": 64,
    **HEADS,
}
PATCH = touch_latents((1, 2, 2))


def vace_inputs() -> Inputs:
    return {**video(), "control_hidden_states": noise(BATCH, 6, 3, 8, 12, seed=2)}


VACE = TinyTransformer(
    "wan-vace",
    build(
        WanVACETransformer3DModel,
        in_channels=4,
        num_layers=3,
        vace_layers=[0, 2],
        vace_in_channels=6,
        **WAN,
    ),
    vace_inputs,
    PATCH,
    GRID,
    5,
)

skyreels_v2 = build(SkyReelsV2Transformer3DModel, in_channels=4, num_layers=2, **WAN)


def forcing_inputs() -> Inputs:
    """Each frame has a timestep of its own."""
    timesteps = torch.tensor([[100.0, 200.0, 300.0], [400.0, 500.0, 500.0]])
    return {**video(), "timestep": timesteps, "enable_diffusion_forcing": True}


def animate_inputs() -> Inputs:
    return {
        **video(12),
        "pose_hidden_states": noise(BATCH, 4, 2, 8, 12, seed=2),
        "face_pixel_values": noise(BATCH, 3, 5, 16, 16, seed=3),
    }


ANIMATE = TinyTransformer(
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
        **WAN,
    ),
    animate_inputs,
    PATCH,
    GRID,
    2,
)

chronoedit = build(ChronoEditTransformer3DModel, in_channels=4, num_layers=2, **WAN)
anyflow = build(AnyFlowTransformer3DModel, in_channels=4, num_layers=2, **WAN)


def anyflow_inputs() -> Inputs:
    times = {
        name: torch.full((BATCH, 3), t) for name, t in (("timestep", 500), ("r_timestep", 250))
    }
    return {**frames_first(video()), **times}


ROWS = [
    VACE,
    TinyTransformer("skyreels-v2", skyreels_v2, video, PATCH, GRID, 2),
    TinyTransformer("skyreels-v2", skyreels_v2, forcing_inputs, PATCH, GRID, 2),
    ANIMATE,
    TinyTransformer("chronoedit", chronoedit, video, PATCH, GRID, 2),
    TinyTransformer("anyflow", anyflow, anyflow_inputs, touch_frames_first, GRID, 2),
]
