"""Declare Krea 2: joint attention, text before visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.flux import PACKED_SIDE, layout_from_ids
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout, drop_padded_text


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid from position_ids ``[S, 3]``, which are read from the device.

    Text is padded before its suffix.
    """
    text = arguments["encoder_hidden_states"].shape[1]
    padded = layout_from_ids(arguments["position_ids"][text:], text)
    mask = arguments.get("encoder_attention_mask")
    return padded if mask is None else drop_padded_text(padded, mask)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of packed latents."""
    return SizeRule(2 ** len(vae.get("temperal_downsample", (0,) * 3)) * PACKED_SIDE, 1)


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
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_attention_mask",
    ),
    joint=True,
    output="image",
)
