"""JoyImage Edit and Edit Plus: joint attention, visual tokens of all images before text."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch.nn.functional import pad

from dit_accel_pipelines.family import (
    Config,
    Family,
    Postprocess,
    SizeRule,
    TokenLayout,
    patches,
    valid_text,
)


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``, or ``[B, N, C, F, H, W]``: then images are
    frames, the last one first.
    """
    latents, images = arguments["hidden_states"], 1
    if latents.dim() == 6:
        latents, images = latents[:, 0], latents.shape[1]
    frames, height, width = patches(latents, config["patch_size"])
    text = arguments["encoder_hidden_states"].shape[1]
    return TokenLayout(images * frames, height, width, text)


def plus_layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout | None:
    """Images as frames of the grid that shape_list has for each sample, a line where they have several sizes; none
    where samples differ. Patches ``[B, S, C, f, h, w]`` and text are padded at their ends.
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
    found = TokenLayout(tokens // (height * width), height, width, text)
    mask = arguments.get("encoder_hidden_states_mask")
    return found if mask is None else valid_text(found, pad(mask.bool(), (padding, 0)))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    return SizeRule(vae.get("scale_factor_spatial", 8) * transformer["patch_size"][1], 1)


def heads(transformer: Config) -> tuple[int, int]:
    """Of which all together have hidden_size channels."""
    count = transformer["num_attention_heads"]
    return count, transformer["hidden_size"] // count


NORM = Postprocess("scales the guided prediction to the norm of the conditional one")

JOYIMAGE_EDIT = Family(
    name="joyimage-edit",
    transformers=("JoyImageEditTransformer3DModel",),
    attention=r"double_blocks\.\d+\.attn",
    blocks={"double_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    heads=heads,
    joint=True,
    output="image",
    postprocess=(NORM,),
)

JOYIMAGE_EDIT_PLUS = Family(
    name="joyimage-edit-plus",
    transformers=("JoyImageEditPlusTransformer3DModel",),
    attention=r"double_blocks\.\d+\.attn",
    blocks={"double_blocks": "num_layers"},
    layout=plus_layout,
    size_rule=size_rule,
    cfg="batched",
    heads=heads,
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "encoder_hidden_states_mask"),
        "shape_list",
    ),
    joint=True,
    output="image",
    postprocess=(NORM,),
    remark="batches of samples whose images differ in number or size stay dense",
)
