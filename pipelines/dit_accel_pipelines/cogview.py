"""Declare CogView 3 Plus and CogView 4: joint attention, text before visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import image_size_rule
from dit_accel_pipelines.token_layout import Config, TokenLayout, latent_grid

BATCH_ARGUMENTS = (
    "hidden_states",
    "encoder_hidden_states",
    "timestep",
    "original_size",
    "target_size",
    "crop_coords",
)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, H, W]``."""
    grid = latent_grid(arguments, config)
    return TokenLayout(*grid, arguments["encoder_hidden_states"].shape[1], text_first=True)


COGVIEW3_PLUS = Family(
    name="cogview3-plus",
    transformers=("CogView3PlusTransformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="batched",
    text_tokens=lambda _: 224,
    text_first=True,
    batch_arguments=BATCH_ARGUMENTS,
    joint=True,
    output="image",
)

COGVIEW4 = Family(
    name="cogview4",
    transformers=("CogView4Transformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="separate",
    text_first=True,
    batch_arguments=BATCH_ARGUMENTS,
    joint=True,
    output="image",
)
