"""Helios: self-attention (``attn1``) over history and visual tokens, coarse history first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import (
    STRETCHES,
    Config,
    Family,
    Postprocess,
    TokenLayout,
    latent_grid,
)
from dit_accel_pipelines.framepack import coarse_tokens
from dit_accel_pipelines.wan import size_rule

HISTORY = {"latents_history_long": 4, "latents_history_mid": 2, "latents_history_short": 1}


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``; history is no part of it."""
    history = sum(coarse_tokens(arguments.get(name), factor) for name, factor in HISTORY.items())
    grid = latent_grid(arguments, config)
    return TokenLayout(*grid, history, text_first=True)


HELIOS = Family(
    name="helios",
    transformers=("HeliosTransformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    text_first=True,
    batched=("hidden_states", "encoder_hidden_states", "timestep", *HISTORY),
    joint=True,
    remark=STRETCHES,
    postprocess=(
        Postprocess(
            "scales the unconditional prediction (CFG-Zero*)", "is_cfg_zero_star", default=False
        ),
    ),
)
