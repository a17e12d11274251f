"""Declare CogVideoX: joint attention, text before visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule, latent_scale
from dit_accel_pipelines.token_layout import Config, TokenLayout


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, F, C, H, W]``."""
    _, frames, _, height, width = arguments["hidden_states"].shape
    depth, patch = config.get("patch_size_t") or 1, config["patch_size"]
    text = arguments["encoder_hidden_states"].shape[1]
    return TokenLayout(frames // depth, height // patch, width // patch, text, text_first=True)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule; CogVideoX 1.5 pads latent frames to whole tokens."""
    space = latent_scale(vae) * transformer["patch_size"]
    time = vae.get("temporal_compression_ratio", 4)
    return SizeRule(space, time, transformer.get("patch_size_t") or 1)


COGVIDEOX = Family(
    name="cogvideox",
    transformers=("CogVideoXTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    text_tokens=lambda transformer: transformer.get("max_text_seq_length", 226),
    text_first=True,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "timestep_cond",
        "ofs",
    ),
    joint=True,
)
