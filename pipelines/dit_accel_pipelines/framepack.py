"""Declare HunyuanVideo-Framepack: joint attention, history before visual tokens, image and text after them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dit_accel_pipelines.family import CHUNKED, Family
from dit_accel_pipelines.hunyuan_video import size_rule
from dit_accel_pipelines.token_layout import Config, TokenLayout, latent_grid, split_by_sample

if TYPE_CHECKING:
    from torch import Tensor

# The pipeline pads to these numbers of tokens: SigLIP's for the image, Llama's for the text.
IMAGE, TEXT = 729, 256


def count_history_tokens(latents: Tensor | None, factor: int) -> int:
    """Return the number of tokens in history latents ``[B, C, F, H, W]``; 0 for None.

    A token covers ``factor`` frames and ``2 * factor`` rows and columns. A partly filled last token counts.
    """
    if latents is None:
        return 0
    frames, height, width = latents.shape[-3:]
    return -(-frames // factor) * -(-height // (2 * factor)) * -(-width // (2 * factor))


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, F, H, W]``.

    Text is padded at its end if there are several samples. The model crops it if there is one.
    """
    grid = latent_grid(arguments, config)
    factors = {"latents_clean": 1, "latents_history_2x": 2, "latents_history_4x": 4}
    history = sum(count_history_tokens(arguments.get(n), factor) for n, factor in factors.items())
    mask, image = arguments["encoder_attention_mask"], arguments["image_embeds"].shape[1]
    lengths = [image + int(length) for length in mask.sum(1).tolist()]
    text = lengths[0] if len(lengths) == 1 else image + mask.shape[1]
    padded = TokenLayout(*grid, history + text)
    tokens = torch.arange(padded.visual_tokens + padded.text_tokens, device=mask.device)
    before, visual, after = tokens.tensor_split([history, history + padded.visual_tokens])
    indices = [torch.cat([visual, before, after[:length]]) for length in lengths]
    return split_by_sample(padded, indices)


FRAMEPACK = Family(
    name="hunyuan-video-framepack",
    transformers=("HunyuanVideoFramepackTransformer3DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="embedded",
    text_tokens=lambda _: IMAGE + TEXT,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "timestep",
        "pooled_projections",
        "image_embeds",
        "guidance",
        "latents_clean",
        "latents_history_2x",
        "latents_history_4x",
    ),
    joint=True,
    # Other tokens lie on both sides of the visual tokens.
    guidance=False,
    remark=CHUNKED,
)
