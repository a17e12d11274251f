"""Latte: self-attention (``attn1``) within each frame; that of the temporal blocks is over a few frames, and
stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import (
    Config,
    Family,
    SizeRule,
    TokenLayout,
    latent_grid,
    latent_scale,
)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of a frame's latent patches, from hidden_states ``[B, C, F, H, W]``; frames are samples."""
    _, height, width = latent_grid(arguments, config)
    return TokenLayout(1, height, width)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """One frame of tokens, whatever the number of frames."""
    return SizeRule(latent_scale(vae) * transformer["patch_size"], 1, transformer["video_length"])


LATTE = Family(
    name="latte",
    transformers=("LatteTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    batched=("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"),
    remark="the attention of its temporal blocks, over a few frames, stays dense",
    guidance=False,  # frames are samples in its blocks
)
