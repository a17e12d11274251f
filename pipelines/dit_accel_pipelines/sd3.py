"""Stable Diffusion 3 and 3.5: joint attention (``attn``), visual tokens before text; in some blocks of 3.5 also
self-attention of the visual tokens alone (``attn2``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import (
    Config,
    Family,
    TokenLayout,
    image_size_rule,
    latent_grid,
)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, H, W]``."""
    grid = latent_grid(arguments, config)
    return TokenLayout(*grid, arguments["encoder_hidden_states"].shape[1])


SD3 = Family(
    name="sd3",
    transformers=("SD3Transformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn2?",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="batched",
    text_tokens=lambda _: 77 + 256,  # CLIP's and T5's
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections"),
        *("block_controlnet_hidden_states", "joint_attention_kwargs"),
    ),
    joint=True,
    crops_text=True,  # attn2 has none
    more_attention=lambda config: len(config.get("dual_attention_layers") or ()),
    output="image",
)
