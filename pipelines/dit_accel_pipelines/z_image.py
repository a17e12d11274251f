"""Z-Image: joint attention, sample by sample the image, what fills it up to a multiple of 32 tokens, and the caption,
filled up likewise. Refiners, which see each alone, stay dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import (
    Config,
    Family,
    SizeRule,
    TokenLayout,
    in_parts,
    latent_scale,
    patches,
)

MULTIPLE = 32


def filled_up(tokens: int) -> int:
    """A number of tokens with those that fill it up; they take part in the attention."""
    return -(-tokens // MULTIPLE) * MULTIPLE


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout | None:
    """The grid of latent patches, from x, a list of ``[C, F, H, W]``; samples with shorter captions
    (cap_feats, a list of ``[T, C]``) are padded at their end. None for images of several sizes, and for the lists
    of images of Omni.
    """
    images, captions = arguments["x"], arguments["cap_feats"]
    if isinstance(images[0], list) or any(image.shape != images[0].shape for image in images):
        return None
    side, depth = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
    grid = TokenLayout(*patches(images[0][None], (depth, side, side)))
    visual = filled_up(grid.visual_tokens)
    lengths = [visual + filled_up(len(caption)) for caption in captions]
    found = TokenLayout(grid.frames, grid.height, grid.width, max(lengths) - grid.visual_tokens)
    if min(lengths) == max(lengths):
        return found
    return in_parts(found, [torch.arange(n, device=images[0].device) for n in lengths])


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    return SizeRule(latent_scale(vae) * transformer["all_patch_size"][0], 1)


Z_IMAGE = Family(
    name="z-image",
    transformers=("ZImageTransformer2DModel",),
    attention=r"layers\.\d+\.attention",
    blocks={"layers": "n_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    text_tokens=lambda _: 512,
    heads=lambda transformer: (
        transformer["n_heads"],
        transformer["dim"] // transformer["n_heads"],
    ),
    batched=("x", "t", "cap_feats", "siglip_feats", "image_noise_mask"),
    joint=True,
    output="image",
    guidance=False,
    remark="Omni's lists of images, and batches of images of several sizes, stay dense",
)
