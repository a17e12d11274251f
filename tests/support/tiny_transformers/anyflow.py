"""Tiny AnyFlow."""

from __future__ import annotations

import torch
from diffusers import AnyFlowTransformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import BATCH, VIDEO_GRID, frames_first, video_latents
from support.tiny_transformers.touch import touch_frames_first
from support.tiny_transformers.wan import WAN_LIKE


def inputs() -> Inputs:
    times = {
        name: torch.full((BATCH, 3), time)
        for name, time in (("timestep", 500), ("r_timestep", 250))
    }
    return {**frames_first(video_latents()), **times}


ROWS = [
    TinyTransformer(
        "anyflow",
        build(AnyFlowTransformer3DModel, in_channels=4, num_layers=2, **WAN_LIKE),
        inputs,
        touch_frames_first,
        grid=VIDEO_GRID,
        layers=2,
    )
]
