"""Declare AuraFlow: joint attention, with register tokens and text before visual tokens.

Blocks are dual-stream or single-stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import image_size_rule
from dit_accel_pipelines.token_layout import Config, TokenLayout, latent_grid

REGISTERS = 8


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, H, W]``; registers count as text."""
    grid = latent_grid(arguments, config)
    text = REGISTERS + arguments["encoder_hidden_states"].shape[1]
    return TokenLayout(*grid, text, text_first=True)


AURAFLOW = Family(
    name="auraflow",
    transformers=("AuraFlowTransformer2DModel",),
    attention=r"(joint|single)_transformer_blocks\.\d+\.attn",
    blocks={
        "joint_transformer_blocks": "num_mmdit_layers",
        "single_transformer_blocks": "num_single_dit_layers",
    },
    layout=layout,
    size_rule=image_size_rule,
    cfg="batched",
    text_tokens=lambda _: REGISTERS + 256,
    text_first=True,
    joint=True,
    output="image",
)
