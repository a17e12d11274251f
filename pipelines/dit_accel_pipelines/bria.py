"""Declare Bria, Bria Fibo and Bria Fibo 2: joint attention, text before visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch

from dit_accel_pipelines.family import Family, Postprocess, heads_of_dim
from dit_accel_pipelines.flux import layout, size_rule
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout, drop_padded_text, patch_grid


def fibo_layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid from img_ids, without padded text according to the pipeline's mask ``[B, 1, 1, S]``."""
    padded = layout(arguments, config)
    mask = (arguments.get("joint_attention_kwargs") or {}).get("attention_mask")
    return padded if mask is None else drop_padded_text(padded, mask[:, 0, 0, : padded.text_tokens])


def fibo2_layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, H, W]`` and of the context images.

    Context images of the same size count as frames. Otherwise all visual tokens form one line. The model replaces
    text by gist tokens, whose number grows with its length. They come first if all samples have equally many, and
    last if not.
    """
    images = [arguments["hidden_states"], *(arguments.get("context_latents") or ())]
    side = config["patch_size"]
    grids = [patch_grid(image, (1, side, side)) for image in images]
    _, height, width = grids[0]
    if len(set(grids)) > 1:
        height, width = 1, sum(h * w for _, h, w in grids)
    frames = len(grids) if len(set(grids)) == 1 else 1
    text, mask = arguments["encoder_hidden_states"], arguments.get("encoder_attention_mask")
    lengths = [text.shape[2]] * len(text) if mask is None else mask.sum(1).tolist()
    counts = [count_gist_tokens(length, config) for length in lengths]
    if min(counts) == max(counts):
        return TokenLayout(frames, height, width, counts[0], text_first=True)
    valid = torch.arange(max(counts), device="cpu") < torch.tensor(counts, device="cpu")[:, None]
    return drop_padded_text(TokenLayout(frames, height, width, max(counts)), valid.to(text.device))


def count_gist_tokens(length: int, config: Config) -> int:
    """Return the number of gist tokens that replace a text of ``length`` tokens in Fibo 2."""
    low, high = config["min_num_gist_tokens"], config["max_num_gist_tokens"]
    shortest, longest = config["gist_min_text_len"], config["gist_max_text_len"]
    step = config["gist_step"]
    share = min(1.0, max(0.0, (length - shortest) / (longest - shortest)))
    count = ceil((low + share * (high - low)) / step) * step
    return int(max(low, min(high, count)))


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
    batch_arguments=("hidden_states", "encoder_hidden_states", "timestep", "guidance"),
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
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "guidance",
        "text_encoder_layers",
        "joint_attention_kwargs",
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
    heads=heads_of_dim,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_attention_mask",
        "context_latents",
    ),
    joint=True,
    output="image",
)
