"""Lumina-Next: self-attention (``attn1``) over visual tokens alone, text in a separate cross attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from dit_accel_pipelines import pixart
from dit_accel_pipelines.family import Config, Family, TokenLayout, TokenSubset, image_size_rule
from dit_accel_pipelines.joyimage import heads


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, H, W]``; the mask of the transformer hides nothing."""
    found = pixart.layout(arguments, config)
    places = torch.arange(found.visual_tokens, device=arguments["hidden_states"].device)
    return replace(found, parts=(TokenSubset(None, places),))


LUMINA_NEXT = Family(
    name="lumina-next",
    transformers=("LuminaNextDiT2DModel",),
    attention=r"layers\.\d+\.attn1",
    blocks={"layers": "num_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="batched",
    heads=heads,
    batched=("hidden_states", "encoder_hidden_states", "timestep", "encoder_mask"),
    output="image",
    guidance=False,  # the conditional half of its batch is the first
)
