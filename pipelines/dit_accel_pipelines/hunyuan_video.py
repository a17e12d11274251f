"""HunyuanVideo: joint attention, visual tokens before text, in dual- and single-stream blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import (
    Config,
    Family,
    SizeRule,
    TokenLayout,
    latent_grid,
    valid_text,
)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``; text is padded at its end."""
    grid = latent_grid(arguments, config)
    text = TokenLayout(*grid, arguments["encoder_hidden_states"].shape[1])
    return valid_text(text, arguments["encoder_attention_mask"])


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    space = vae.get("spatial_compression_ratio", 8) * transformer["patch_size"]
    return SizeRule(space, vae.get("temporal_compression_ratio", 4), transformer["patch_size_t"])


HUNYUAN_VIDEO = Family(
    name="hunyuan-video",
    transformers=("HunyuanVideoTransformer3DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="embedded",
    text_tokens=lambda _: 256,
    joint=True,
)
