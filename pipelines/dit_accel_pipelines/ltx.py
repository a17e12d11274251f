"""Declare LTX-Video and LTX-2: self-attention (``attn1``) over visual tokens only, given as a sequence.

The audio of LTX-2 has its own attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid from num_frames, height and width.

    Keyframes or a reference video add tokens: then video_coords ``[B, 3, S, ...]`` have more positions than the
    grid, and all visual tokens form one line.
    """
    frames, height, width = (arguments.get(name) or 1 for name in ("num_frames", "height", "width"))
    grid, coords = TokenLayout(frames, height, width), arguments.get("video_coords")
    if coords is None or coords.shape[2] == grid.visual_tokens:
        return grid
    return TokenLayout(1, 1, coords.shape[2])


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE's latents, which are tokens."""
    space, time = vae.get("spatial_compression_ratio"), vae.get("temporal_compression_ratio")
    return SizeRule(space or 32, time or 8)


MASK_OF_ALL_HEADS = "diffusers passes cross-attention a text mask for all heads, but each device has only some of them"

LTX = Family(
    name="ltx",
    transformers=("LTXVideoTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_attention_mask",
        "video_coords",
    ),
    context_parallel_error=MASK_OF_ALL_HEADS,
)

LTX2 = Family(
    name="ltx-2",
    transformers=("LTX2VideoTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_attention_mask",
        "video_coords",
        "sigma",
        "video_self_attention_mask",
        "video_keyframes_mask",
        "audio_hidden_states",
        "audio_encoder_hidden_states",
        "audio_timestep",
        "audio_sigma",
        "audio_encoder_attention_mask",
        "audio_coords",
        "perturbation_mask",
    ),
    context_parallel_error=MASK_OF_ALL_HEADS,
)
