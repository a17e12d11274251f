"""Motif-Video: joint attention, visual tokens before image embeddings and text, in dual- and single-stream
blocks. The decoder, where there is one, attends over the visual tokens twice, and stays dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn.functional import pad

from dit_accel_pipelines.family import (
    Config,
    Family,
    SizeRule,
    TokenLayout,
    latent_grid,
    valid_text,
)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``."""
    images = arguments.get("image_embeds")
    grid = latent_grid(arguments, config)
    image = 0 if images is None else images.shape[1]
    found = TokenLayout(*grid, image + arguments["encoder_hidden_states"].shape[1])
    mask = arguments.get("encoder_attention_mask")
    return found if mask is None else valid_text(found, pad(mask.bool(), (image, 0), value=True))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    space = vae.get("scale_factor_spatial", 8) * transformer["patch_size"]
    return SizeRule(space, vae.get("scale_factor_temporal", 4), transformer["patch_size_t"])


MOTIF_VIDEO = Family(
    name="motif-video",
    transformers=("MotifVideoTransformer3DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    text_tokens=lambda _: 512,
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"),
        "image_embeds",
    ),
    joint=True,
    remark="its decoder stays dense",
)
