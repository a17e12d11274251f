"""Mochi: joint attention, visual tokens before the valid text tokens, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``; how many text tokens are valid is
    known in the attention only.
    """
    _, _, frames, height, width = arguments["hidden_states"].shape
    patch = config["patch_size"]
    return TokenLayout(frames, height // patch, width // patch)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    return SizeRule(8 * transformer["patch_size"], frame_step=6)


def video_layout(
    frames: int, height: int, width: int, transformer: Config, vae: Config
) -> TokenLayout:
    """Tokens of a video of some frames of height x width pixels, with all the text there can be."""
    space = 8 * transformer["patch_size"]
    text = transformer.get("max_sequence_length", 256)
    return TokenLayout((frames - 1) // 6 + 1, height // space, width // space, text)


MOCHI = Family(
    name="mochi",
    transformers=("MochiTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    video_layout=video_layout,
    cfg="one batch",
    batched=("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"),
    joint=True,
    crops_text=True,
    tested="declared",
)
