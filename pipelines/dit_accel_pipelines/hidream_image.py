"""Declare HiDream-Image: joint attention, visual tokens before text, in dual-stream and single-stream blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import image_size_rule
from dit_accel_pipelines.token_layout import Config, TokenLayout, patch_grid


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, H, W]``, or of patches ``[B, S, C]`` from img_sizes.

    An image that is not square is padded with tokens that take part in the attention. They count as text. Text is
    T5's tokens and two layers of Llama: the last layer, and the one that belongs to the block.
    """
    latents, side = arguments["hidden_states"], config["patch_size"]
    if latents.dim() == 3:
        height, width = (int(size) for size in arguments["img_sizes"][0])
        tokens = latents.shape[1]
    else:
        _, height, width = patch_grid(latents, (1, side, side))
        is_square = latents.shape[-1] == latents.shape[-2]
        limit = config["max_resolution"]
        tokens = height * width if is_square else limit[0] * limit[1] // side**2
    text = arguments["encoder_hidden_states_t5"].shape[1]
    text += 2 * arguments["encoder_hidden_states_llama3"][0].shape[1]
    return TokenLayout(1, height, width, tokens - height * width + text)


HIDREAM_IMAGE = Family(
    name="hidream-image",
    transformers=("HiDreamImageTransformer2DModel",),
    attention=r"(double|single)_stream_blocks\.\d+\.block\.attn1",
    blocks={"double_stream_blocks": "num_layers", "single_stream_blocks": "num_single_layers"},
    layout=layout,
    size_rule=image_size_rule,
    cfg="batched",
    text_tokens=lambda _: 3 * 128,
    batch_arguments=("hidden_states", "timesteps", "encoder_hidden_states_t5", "pooled_embeds"),
    joint=True,
    output="image",
    # The batch is the second dimension of Llama's layers.
    guidance=False,
)
