"""HiDream-Image: joint attention, visual tokens before text, in dual- and single-stream blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, TokenLayout, image_size_rule, patches


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, H, W]``, or from img_sizes where they are patches
    ``[B, S, C]`` already. An image that is no square is filled up with tokens that take part in the attention, and
    count as text; so do two of Llama's layers: the last, and one of the block's own.
    """
    latents, side = arguments["hidden_states"], config["patch_size"]
    if latents.dim() == 3:
        height, width = (int(size) for size in arguments["img_sizes"][0])
        tokens = latents.shape[1]
    else:
        _, height, width = patches(latents, (1, side, side))
        square = latents.shape[-1] == latents.shape[-2]
        limit = config["max_resolution"]
        tokens = height * width if square else limit[0] * limit[1] // side**2
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
    batched=("hidden_states", "timesteps", "encoder_hidden_states_t5", "pooled_embeds"),
    joint=True,
    output="image",
    guidance=False,  # Llama's layers have the batch second
)
