"""Declare Lumina-Next: self-attention (``attn1``) over visual tokens only, with a separate cross-attention to text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from dit_accel_pipelines.family import Family, heads_of_hidden_size
from dit_accel_pipelines.sizes import image_size_rule
from dit_accel_pipelines.token_layout import Config, TokenLayout, TokenSubset, latent_layout


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, H, W]``.

    The subset says that all tokens are valid, because the transformer passes a mask that hides none.
    """
    grid = latent_layout(arguments, config)
    tokens = torch.arange(grid.visual_tokens, device=arguments["hidden_states"].device)
    return replace(grid, subsets=(TokenSubset(None, tokens),))


LUMINA_NEXT = Family(
    name="lumina-next",
    transformers=("LuminaNextDiT2DModel",),
    attention=r"layers\.\d+\.attn1",
    blocks={"layers": "num_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="batched",
    heads=heads_of_hidden_size,
    batch_arguments=("hidden_states", "encoder_hidden_states", "timestep", "encoder_mask"),
    output="image",
    # The conditional half of the batch comes first.
    guidance=False,
)
