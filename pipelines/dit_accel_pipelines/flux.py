"""Declare Flux: joint attention, text before visual tokens, in dual-stream and single-stream blocks.

Kontext's reference image comes after the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.positions import infer_grid
from dit_accel_pipelines.sizes import SizeRule, latent_scale
from dit_accel_pipelines.token_layout import Config, TokenLayout

if TYPE_CHECKING:
    from torch import Tensor

# The pipeline packs 2 x 2 latents into a token.
PACKED_SIDE = 2


def layout_from_ids(ids: Tensor, text_tokens: int) -> TokenLayout:
    """Return the layout of text, followed by images of the given positions.

    Images of the same size count as frames. Otherwise all visual tokens form one line.

    Args:
        ids: Image, row, column, ... of each visual token, ``[S, A]`` or ``[B, S, A]``; read from the device.
        text_tokens: Number of text tokens.
    """
    ids = ids[0] if ids.dim() == 3 else ids
    return TokenLayout(*infer_grid(ids[:, 1:3]), text_tokens, text_first=True)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid from img_ids ``[S, 3]``."""
    return layout_from_ids(arguments["img_ids"], arguments["encoder_hidden_states"].shape[1])


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of packed latents."""
    return SizeRule(latent_scale(vae) * PACKED_SIDE, 1)


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
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "pooled_projections",
        "guidance",
    ),
    joint=True,
    output="image",
)
