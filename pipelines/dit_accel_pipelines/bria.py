"""Bria, Bria Fibo and Fibo 2: joint attention, text before visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch

from dit_accel_pipelines.family import (
    Config,
    Family,
    Postprocess,
    SizeRule,
    TokenLayout,
    patches,
    valid_text,
)
from dit_accel_pipelines.flux import layout, size_rule


def fibo_layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid from img_ids; the pipeline's mask ``[B, 1, 1, S]`` hides padding of the text."""
    found = layout(arguments, config)
    mask = (arguments.get("joint_attention_kwargs") or {}).get("attention_mask")
    return found if mask is None else valid_text(found, mask[:, 0, 0, : found.text_tokens])


def fibo2_layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, H, W]``, with context images of its size as frames;
    a line where they have another. Text is a number of tokens that grows with its length: they come first, or last
    where samples have unequally many.
    """
    images = [arguments["hidden_states"], *(arguments.get("context_latents") or ())]
    side = config["patch_size"]
    grids = [patches(image, (1, side, side)) for image in images]
    _, height, width = grids[0]
    if len(set(grids)) > 1:
        height, width = 1, sum(h * w for _, h, w in grids)
    frames = len(grids) if len(set(grids)) == 1 else 1
    text, mask = arguments["encoder_hidden_states"], arguments.get("encoder_attention_mask")
    lengths = [text.shape[2]] * len(text) if mask is None else mask.sum(1).tolist()
    counts = [gist_tokens(length, config) for length in lengths]
    if min(counts) == max(counts):
        return TokenLayout(frames, height, width, counts[0], text_first=True)
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return valid_text(TokenLayout(frames, height, width, max(counts)), valid.to(text.device))


def gist_tokens(length: int, config: Config) -> int:
    """Tokens that stand for a text of a length."""
    low, high = config["min_num_gist_tokens"], config["max_num_gist_tokens"]
    least, step = config["gist_min_text_len"], config["gist_step"]
    share = (length - least) / (config["gist_max_text_len"] - least)
    wanted = low + min(1.0, max(0.0, share)) * (high - low)
    return max(low, min(high, ceil(wanted / step) * step))


BRIA = Family(
    name="bria",
    transformers=("BriaTransformer2DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    text_tokens=lambda _: 128,
    text_first=True,
    batched=("hidden_states", "encoder_hidden_states", "timestep", "guidance"),
    joint=True,
    output="image",
    postprocess=(
        Postprocess(
            "scales the guided prediction towards the standard deviation of the conditional one",
            "normalize",
            default=False,
        ),
        Postprocess("clips the guided prediction", "clip_value", default=False),
    ),
)

BRIA_FIBO = Family(
    name="bria-fibo",
    transformers=("BriaFiboTransformer2DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=fibo_layout,
    size_rule=lambda _, vae: SizeRule(vae.get("scale_factor_spatial", 16), 1),
    cfg="batched",
    text_first=True,
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "guidance"),
        *("text_encoder_layers", "joint_attention_kwargs"),
    ),
    joint=True,
    output="image",
)

BRIA_FIBO2 = Family(
    name="bria-fibo-2",
    transformers=("BriaFibo2Transformer2DModel",),
    attention=r"layers\.\d+\.attention",
    blocks={"layers": "n_layers"},
    layout=fibo2_layout,
    size_rule=size_rule,
    cfg="separate",
    text_tokens=lambda transformer: transformer["min_num_gist_tokens"],
    text_first=True,
    heads=lambda config: (config["n_heads"], config["dim"] // config["n_heads"]),
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"),
        "context_latents",
    ),
    joint=True,
    output="image",
)
