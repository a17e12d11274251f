"""Stable Diffusion 3 and 3.5: joint attention (``attn``), visual tokens before text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import (
    Config,
    Family,
    SizeRule,
    TokenLayout,
    latent_scale,
)

TEXT_TOKENS = 77 + 256  # CLIP's, and the pipeline's default max_sequence_length


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, H, W]``."""
    _, _, height, width = arguments["hidden_states"].shape
    patch = config["patch_size"]
    text = arguments["encoder_hidden_states"].shape[1]
    return TokenLayout(1, height // patch, width // patch, text)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    return SizeRule(latent_scale(vae) * transformer["patch_size"], frame_step=1)


def video_layout(
    frames: int, height: int, width: int, transformer: Config, vae: Config
) -> TokenLayout:
    """Tokens of an image of height x width pixels, with the pipeline's default text."""
    space = latent_scale(vae) * transformer["patch_size"]
    return TokenLayout(1, height // space, width // space, TEXT_TOKENS)


SD3 = Family(
    name="sd3",
    transformers=("SD3Transformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    video_layout=video_layout,
    cfg="one batch",
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections"),
        *("block_controlnet_hidden_states", "joint_attention_kwargs"),
    ),
    joint=True,
    output="image",
    tested="declared",
)
