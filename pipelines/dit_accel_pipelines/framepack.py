"""HunyuanVideo-Framepack: joint attention, history before visual tokens, image and text after them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit_accel_pipelines.family import STRETCHES, Config, Family, TokenLayout, in_parts, latent_grid
from dit_accel_pipelines.hunyuan_video import size_rule


def coarse_tokens(latents: Tensor | None, factor: int) -> int:
    """Tokens of history latents ``[B, C, F, H, W]`` in patches of ``factor`` frames and twice as many rows and
    columns; a last patch that is not full counts.
    """
    if latents is None:
        return 0
    frames, height, width = latents.shape[-3:]
    return -(-frames // factor) * -(-height // (2 * factor)) * -(-width // (2 * factor))


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``. Text is padded at its end, or cropped
    where there is one sample.
    """
    grid = latent_grid(arguments, config)
    clean, twice, four = (
        arguments.get(f"latents_{name}") for name in ("clean", "history_2x", "history_4x")
    )
    history = coarse_tokens(clean, 1) + coarse_tokens(twice, 2) + coarse_tokens(four, 4)
    mask, image = arguments["encoder_attention_mask"], arguments["image_embeds"].shape[1]
    lengths = [image + int(length) for length in mask.sum(1).tolist()]
    text = lengths[0] if len(lengths) == 1 else image + mask.shape[1]
    found = TokenLayout(*grid, history + text)
    places = torch.arange(found.visual_tokens + found.text_tokens, device=mask.device)
    before, visual, after = places.split([history, found.visual_tokens, text])
    return in_parts(found, [torch.cat([visual, before, after[:length]]) for length in lengths])


FRAMEPACK = Family(
    name="hunyuan-video-framepack",
    transformers=("HunyuanVideoFramepackTransformer3DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="embedded",
    text_tokens=lambda _: 729 + 256,  # SigLIP's and Llama's
    batched=(
        *("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep"),
        *("pooled_projections", "image_embeds", "guidance"),
        *("latents_clean", "latents_history_2x", "latents_history_4x"),
    ),
    joint=True,
    remark=STRETCHES,
    guidance=False,  # other tokens on both sides of the visual ones
)
