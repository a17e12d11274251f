"""Declare Latte: self-attention (``attn1``) within each frame.

Temporal blocks attend over a few frames only. They stay dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule, latent_scale
from dit_accel_pipelines.token_layout import Config, TokenLayout, latent_grid


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of one frame of hidden_states ``[B, C, F, H, W]``; frames are samples."""
    _, height, width = latent_grid(arguments, config)
    return TokenLayout(1, height, width)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return a size rule that counts the tokens of one frame, for any number of frames."""
    return SizeRule(latent_scale(vae) * transformer["patch_size"], 1, transformer["video_length"])


LATTE = Family(
    name="latte",
    transformers=("LatteTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_attention_mask",
    ),
    # Frames are samples in its blocks.
    guidance=False,
    remark="Temporal attention stays dense, because it covers only a few frames",
)
