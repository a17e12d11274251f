"""Declare AnyFlow: self-attention (``attn1``) over visual tokens only, with a separate cross-attention to text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.token_layout import Config, TokenLayout
from dit_accel_pipelines.wan import size_rule


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, F, C, H, W]``."""
    _, frames, _, height, width = arguments["hidden_states"].shape
    _, side, _ = config["patch_size"]
    return TokenLayout(frames, height // side, width // side)


ANYFLOW = Family(
    name="anyflow",
    transformers=("AnyFlowTransformer3DModel",),
    attention=r"blocks\.\d+\.attn1",
    blocks={"blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "r_timestep",
        "encoder_hidden_states_image",
    ),
)
