"""Declare HunyuanVideo: joint attention, visual tokens before text, in dual-stream and single-stream blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout, drop_padded_text, latent_grid


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, F, H, W]``; text is padded at its end."""
    grid = latent_grid(arguments, config)
    padded = TokenLayout(*grid, arguments["encoder_hidden_states"].shape[1])
    return drop_padded_text(padded, arguments["encoder_attention_mask"])


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE's latents in patches."""
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
