"""Mochi: joint attention, visual tokens before the valid text tokens, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout, latent_grid


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``; how many text tokens are valid is
    known in the attention only.
    """
    return TokenLayout(*latent_grid(arguments, config))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    return SizeRule(8 * transformer["patch_size"], 6)


MOCHI = Family(
    name="mochi",
    transformers=("MochiTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    text_tokens=lambda transformer: transformer.get("max_sequence_length", 256),
    batched=("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"),
    joint=True,
    crops_text=True,
)
