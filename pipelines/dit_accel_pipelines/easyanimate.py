"""Declare EasyAnimate: joint attention, text before visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout, latent_grid


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, F, H, W]``, after one or two texts."""
    grid = latent_grid(arguments, config)
    texts = (arguments.get(name) for name in ("encoder_hidden_states", "encoder_hidden_states_t5"))
    text_tokens = sum(text.shape[1] for text in texts if text is not None)
    return TokenLayout(*grid, text_tokens, text_first=True)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE, which compresses by 8 in space and by 4 in time."""
    return SizeRule(8 * transformer["patch_size"], 4)


EASYANIMATE = Family(
    name="easyanimate",
    transformers=("EasyAnimateTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    text_tokens=lambda _: 256,
    text_first=True,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "encoder_hidden_states_t5",
        "timestep",
        "timestep_cond",
        "inpaint_latents",
        "control_latents",
    ),
    joint=True,
)
