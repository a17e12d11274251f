"""Kandinsky 6: self-attention over visual tokens alone; text and audio in cross attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, TokenLayout
from dit_accel_pipelines.kandinsky5 import heads, size_rule


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, F, H, W, C]``; a reference image is the last frame."""
    sizes = zip(arguments["hidden_states"].shape[1:4], config["patch_size"], strict=True)
    return TokenLayout(*(size // patch for size, patch in sizes))


KANDINSKY6 = Family(
    name="kandinsky-6",
    transformers=("Kandinsky6Transformer3DModel",),
    attention=r"visual_transformer_blocks\.\d+\.video_dec_block\.self_attention",
    blocks={"visual_transformer_blocks": "num_visual_blocks"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    heads=heads,
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections"),
        *("audio_hidden_states", "encoder_attention_mask", "visual_token_type_ids"),
    ),
)
