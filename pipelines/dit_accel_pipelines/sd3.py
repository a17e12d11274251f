"""Declare Stable Diffusion 3 and 3.5: joint attention (``attn``), visual tokens before text.

Some blocks of 3.5 have a second self-attention over visual tokens only (``attn2``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import image_size_rule
from dit_accel_pipelines.token_layout import Config, TokenLayout, latent_grid

# The pipeline pads to these numbers of tokens.
CLIP_TEXT, T5_TEXT = 77, 256


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, H, W]``."""
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
    text_tokens=lambda _: CLIP_TEXT + T5_TEXT,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "pooled_projections",
        "block_controlnet_hidden_states",
        "joint_attention_kwargs",
    ),
    joint=True,
    # attn2 has no text tokens.
    variable_text=True,
    extra_attention_layers=lambda config: len(config.get("dual_attention_layers") or ()),
    output="image",
)
