"""Flux: joint attention, text before visual tokens, in dual- and single-stream blocks. Kontext's reference image
comes after the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout, latent_scale
from dit_accel_pipelines.positions import grid_of

PACKED = 2  # the pipeline packs 2 x 2 latents into a token


def images(ids: Tensor, text: int) -> TokenLayout:
    """Images of one size as frames, after text, from ids ``[S, A]`` or ``[B, S, A]`` (image, row, column, ...; read
    from the device); a line where sizes differ.
    """
    ids = ids[0] if ids.dim() == 3 else ids
    return TokenLayout(*grid_of(ids[:, 1:3]), text, text_first=True)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid from img_ids ``[S, 3]``."""
    return images(arguments["img_ids"], arguments["encoder_hidden_states"].shape[1])


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
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections"),
        "guidance",
    ),
    joint=True,
    output="image",
)
