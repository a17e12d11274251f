"""Declare JoyImage Edit and Edit Plus: joint attention, visual tokens of all images before text."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from dit_accel_pipelines.family import Family, Postprocess, heads_of_hidden_size
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout, drop_padded_text, patch_grid


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, F, H, W]`` or ``[B, N, C, F, H, W]``.

    N images count as frames; the last image is the first frame.
    """
    latents, images = arguments["hidden_states"], 1
    if latents.dim() == 6:
        latents, images = latents[:, 0], latents.shape[1]
    frames, height, width = patch_grid(latents, config["patch_size"])
    text = arguments["encoder_hidden_states"].shape[1]
    return TokenLayout(images * frames, height, width, text)


def plus_layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout | None:
    """Return the grid of images in shape_list, which has the images of each sample.

    Images of the same size count as frames. Otherwise all visual tokens form one line. The grid is None if samples
    have different images. Patches ``[B, S, C, f, h, w]`` and text are padded at their ends.
    """
    shapes = [[tuple(shape) for shape in sample] for sample in arguments["shape_list"]]
    if any(sample != shapes[0] for sample in shapes):
        return None
    tokens = sum(prod(shape) for shape in shapes[0])
    _, height, width = shapes[0][0]
    if any(shape[1:] != (height, width) for shape in shapes[0]):
        height, width = 1, tokens
    padding = arguments["hidden_states"].shape[1] - tokens
    text = padding + arguments["encoder_hidden_states"].shape[1]
    padded = TokenLayout(tokens // (height * width), height, width, text)
    mask = arguments.get("encoder_hidden_states_mask")
    if mask is None:
        return padded
    return drop_padded_text(padded, torch.nn.functional.pad(mask.bool(), (padding, 0)))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE's latents in patches."""
    return SizeRule(vae.get("scale_factor_spatial", 8) * transformer["patch_size"][1], 1)


RESCALE_TO_NORM = Postprocess("scales the guided prediction to the norm of the conditional one")

JOYIMAGE_EDIT = Family(
    name="joyimage-edit",
    transformers=("JoyImageEditTransformer3DModel",),
    attention=r"double_blocks\.\d+\.attn",
    blocks={"double_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    heads=heads_of_hidden_size,
    joint=True,
    output="image",
    postprocess=(RESCALE_TO_NORM,),
)

JOYIMAGE_EDIT_PLUS = Family(
    name="joyimage-edit-plus",
    transformers=("JoyImageEditPlusTransformer3DModel",),
    attention=r"double_blocks\.\d+\.attn",
    blocks={"double_blocks": "num_layers"},
    layout=plus_layout,
    size_rule=size_rule,
    cfg="batched",
    heads=heads_of_hidden_size,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_hidden_states_mask",
        "shape_list",
    ),
    joint=True,
    output="image",
    postprocess=(RESCALE_TO_NORM,),
    remark="Calls stay dense if the images of the samples differ in number or size",
)
