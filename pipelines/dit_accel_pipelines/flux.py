"""Flux: joint attention, text before visual tokens, in dual- and single-stream blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout, latent_scale

PACKED = 2  # the pipeline packs 2 x 2 latents into a token


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid from img_ids ``[S, 3]`` (read from the device); a line where the tokens are no single grid,
    as with Kontext's reference image.
    """
    text = arguments["encoder_hidden_states"].shape[1]
    tokens = arguments["hidden_states"].shape[1]
    ids = arguments["img_ids"]
    ids = ids[0] if ids.dim() == 3 else ids
    height, width = ((ids[:, 1:].amax(0) - ids[:, 1:].amin(0)).int() + 1).tolist()
    if height * width != tokens:
        height, width = 1, tokens
    return TokenLayout(1, height, width, text, text_first=True)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    return SizeRule(latent_scale(vae) * PACKED, 1)


FLUX = Family(
    name="flux",
    transformers=("FluxTransformer2DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="embedded",
    text_tokens=lambda _: 512,
    text_first=True,
    joint=True,
    output="image",
    tested="declared",
)
