"""AnyFlow: self-attention (``attn1``) over visual tokens alone, text in a separate cross attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, TokenLayout
from dit_accel_pipelines.wan import size_rule


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, F, C, H, W]``."""
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
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "r_timestep"),
        "encoder_hidden_states_image",
    ),
)
