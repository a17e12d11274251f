"""Make inputs that several families share."""

from __future__ import annotations

import torch
from support.tiny_transformers.base import Grid, Inputs
from torch import Tensor

BATCH = 2
VIDEO_GRID = (3, 4, 6)
IMAGE_GRID = (1, 6, 8)
TWO_IMAGES = (2, 6, 8)

TEXT_TOKENS = 7
FULL_TEXT = (7, 7)
"""Numbers of text tokens of the two samples without padding."""

VALID_TEXT = (7, 5)
"""Numbers of valid text tokens of the two samples with padding."""

HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}

ROPE_AXES = (4, 6, 6)
"""Channels of a head for each axis of RoPE."""

TIMESTEP = (500.0, 400.0)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers, which are the same for a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padding_mask(tokens: int = TEXT_TOKENS, valid: tuple[int, ...] = VALID_TEXT) -> Tensor:
    """Return a mask ``[B, T]`` that is True for valid tokens; padding comes last."""
    return torch.arange(tokens) < torch.tensor(valid)[:, None]


def position_ids(grid: Grid) -> Tensor:
    """Return image, row and column of each token, ``[S, 3]``."""
    return torch.cartesian_prod(*(torch.arange(size) for size in grid))


def image_latents() -> Inputs:
    """Return image latents ``[B, C, H, W]``, timestep and text."""
    return {
        "hidden_states": noise(BATCH, 4, 2 * IMAGE_GRID[1], 2 * IMAGE_GRID[2]),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 16, seed=1),
    }


def visual_tokens(grid: Grid) -> Inputs:
    """Return visual tokens ``[B, S, C]``, timestep and text."""
    return {
        "hidden_states": noise(BATCH, grid[0] * grid[1] * grid[2], 16),
        "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 16, seed=1),
    }


def flux_like(grid: Grid) -> Inputs:
    """Return visual tokens with Flux's ids of image and text."""
    return {
        **visual_tokens(grid),
        "img_ids": position_ids(grid),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }


def video_latents(channels: int = 4) -> Inputs:
    """Return video latents ``[B, C, F, H, W]``, timestep and text."""
    return {
        "hidden_states": noise(BATCH, channels, 3, 8, 12),
        "timestep": torch.tensor(TIMESTEP),
        "encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 16, seed=1),
    }


def frames_first(inputs: Inputs) -> Inputs:
    """Return inputs with latents ``[B, F, C, H, W]`` instead of ``[B, C, F, H, W]``."""
    return {**inputs, "hidden_states": inputs["hidden_states"].transpose(1, 2).contiguous()}
