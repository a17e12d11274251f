"""Krea 2: joint attention, text before visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout, valid_text
from dit_accel_pipelines.flux import PACKED, images


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid from position_ids ``[S, 3]`` (read from the device); text is padded before its suffix."""
    text = arguments["encoder_hidden_states"].shape[1]
    found = images(arguments["position_ids"][text:], text)
    mask = arguments.get("encoder_attention_mask")
    return found if mask is None else valid_text(found, mask)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    return SizeRule(2 ** len(vae.get("temperal_downsample", (0,) * 3)) * PACKED, 1)


KREA2 = Family(
    name="krea-2",
    transformers=("Krea2Transformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    text_tokens=lambda _: 512,
    text_first=True,
    batched=("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"),
    joint=True,
    output="image",
)
