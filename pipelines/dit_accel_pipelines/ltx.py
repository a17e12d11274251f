"""LTX-Video and LTX-2: self-attention (``attn1``) over visual tokens alone, which come as a sequence;
the audio of LTX-2 has attention of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid from num_frames, height and width; a line where video_coords ``[B, 3, S, ...]`` are of other
    tokens, as with keyframes or a reference video.
    """
    frames, height, width = (arguments.get(name) or 1 for name in ("num_frames", "height", "width"))
    grid, coords = TokenLayout(frames, height, width), arguments.get("video_coords")
    if coords is None or coords.shape[2] == grid.visual_tokens:
        return grid
    return TokenLayout(1, 1, coords.shape[2])


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    space, time = vae.get("spatial_compression_ratio"), vae.get("temporal_compression_ratio")
    return SizeRule(space or 32, time or 8)


ALL_HEADS = "diffusers gives its cross-attention the text's mask for all heads, and each device has some of them"

LTX = Family(
    name="ltx",
    transformers=("LTXVideoTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"),
        "video_coords",
    ),
    unshared=ALL_HEADS,
)

LTX2 = Family(
    name="ltx-2",
    transformers=("LTX2VideoTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="batched",
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"),
        *("video_coords", "sigma", "video_self_attention_mask", "video_keyframes_mask"),
        *("audio_hidden_states", "audio_encoder_hidden_states", "audio_timestep", "audio_sigma"),
        *("audio_encoder_attention_mask", "audio_coords", "perturbation_mask"),
    ),
    unshared=ALL_HEADS,
)
