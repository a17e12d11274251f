"""Tiny SkyReels V2, without and with diffusion forcing."""

from __future__ import annotations

import torch
from diffusers import SkyReelsV2Transformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import VIDEO_GRID, video_latents
from support.tiny_transformers.touch import touch_latents
from support.tiny_transformers.wan import WAN_LIKE

transformer = build(SkyReelsV2Transformer3DModel, in_channels=4, num_layers=2, **WAN_LIKE)


def forcing_inputs() -> Inputs:
    """Return inputs in which each frame has its own timestep."""
    timesteps = torch.tensor([[100.0, 200.0, 300.0], [400.0, 500.0, 500.0]])
    return {**video_latents(), "timestep": timesteps, "enable_diffusion_forcing": True}


ROWS = [
    TinyTransformer("skyreels-v2", transformer, inputs, touch_latents(), grid=VIDEO_GRID, layers=2)
    for inputs in (video_latents, forcing_inputs)
]
