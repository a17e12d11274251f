"""EasyAnimate: joint attention, text before visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout, latent_grid


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``."""
    grid = latent_grid(arguments, config)
    texts = (arguments.get(name) for name in ("encoder_hidden_states", "encoder_hidden_states_t5"))
    text = sum(t.shape[1] for t in texts if t is not None)
    return TokenLayout(*grid, text, text_first=True)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
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
    batched=(
        *("hidden_states", "encoder_hidden_states", "encoder_hidden_states_t5", "timestep"),
        *("timestep_cond", "inpaint_latents", "control_latents"),
    ),
    joint=True,
)
