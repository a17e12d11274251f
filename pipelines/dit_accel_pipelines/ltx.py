"""LTX-Video: self-attention (``attn1``) over visual tokens alone, which come as a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid from num_frames, height and width; a line of hidden_states ``[B, S, C]`` where the
    pipeline gives coordinates instead.
    """
    if arguments.get("num_frames") is None:
        return TokenLayout(1, 1, arguments["hidden_states"].shape[1])
    return TokenLayout(arguments["num_frames"], arguments["height"], arguments["width"])


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    space, time = vae.get("spatial_compression_ratio"), vae.get("temporal_compression_ratio")
    return SizeRule(space or 32, time or 8)


LTX = Family(
    name="ltx",
    transformers=("LTXVideoTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="one batch",
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"),
        "video_coords",
    ),
    tested="declared",
)
