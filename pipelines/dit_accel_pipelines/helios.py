"""Declare Helios: self-attention (``attn1``) over history and visual tokens, with coarse history first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import CHUNKED, Family, Postprocess
from dit_accel_pipelines.framepack import count_history_tokens
from dit_accel_pipelines.token_layout import Config, TokenLayout, latent_grid
from dit_accel_pipelines.wan import size_rule

HISTORY = {"latents_history_long": 4, "latents_history_mid": 2, "latents_history_short": 1}
"""Arguments with history latents, and the number of latent frames that one of their tokens covers."""


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, F, H, W]``; history counts as text."""
    history = sum(count_history_tokens(arguments.get(n), factor) for n, factor in HISTORY.items())
    return TokenLayout(*latent_grid(arguments, config), history, text_first=True)


HELIOS = Family(
    name="helios",
    transformers=("HeliosTransformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    text_first=True,
    batch_arguments=("hidden_states", "encoder_hidden_states", "timestep", *HISTORY),
    joint=True,
    postprocess=(
        Postprocess(
            "scales the unconditional prediction (CFG-Zero*)", "is_cfg_zero_star", default=False
        ),
    ),
    remark=CHUNKED,
)
