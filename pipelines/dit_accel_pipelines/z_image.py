"""Declare Z-Image: joint attention over the image, then the caption, in each sample.

Image and caption are each padded to a multiple of 32 tokens. Refiners attend over one of them only. They stay dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import Family, heads_of_dim
from dit_accel_pipelines.sizes import SizeRule, latent_scale
from dit_accel_pipelines.token_layout import Config, TokenLayout, patch_grid, split_by_sample

MULTIPLE = 32


def round_up(tokens: int) -> int:
    """Return a number of tokens with padding, which takes part in the attention."""
    return -(-tokens // MULTIPLE) * MULTIPLE


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout | None:
    """Return the grid of latent patches of x, a list of ``[C, F, H, W]``.

    Captions are cap_feats, a list of ``[T, C]``. Samples with shorter captions are padded at their end. The grid is
    None for images of different sizes, and for the lists of images of Omni.
    """
    images, captions = arguments["x"], arguments["cap_feats"]
    if isinstance(images[0], list) or any(image.shape != images[0].shape for image in images):
        return None
    side, depth = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
    frames, height, width = patch_grid(images[0][None], (depth, side, side))
    visual = frames * height * width
    lengths = [round_up(visual) + round_up(len(caption)) for caption in captions]
    longest = TokenLayout(frames, height, width, max(lengths) - visual)
    if min(lengths) == max(lengths):
        return longest
    return split_by_sample(longest, [torch.arange(n, device=images[0].device) for n in lengths])


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE's latents in patches."""
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
    heads=heads_of_dim,
    batch_arguments=("x", "t", "cap_feats", "siglip_feats", "image_noise_mask"),
    joint=True,
    output="image",
    guidance=False,
    remark="Calls stay dense for Omni's lists of images, and for batches of images of different sizes",
)
