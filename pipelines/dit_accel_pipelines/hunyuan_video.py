"""HunyuanVideo: joint attention, visual tokens before text, in dual- and single-stream blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout

TEXT_TOKENS = 256  # the pipeline's default max_sequence_length


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, C, F, H, W]``; text is padded."""
    _, _, frames, height, width = arguments["hidden_states"].shape
    depth, patch = config["patch_size_t"], config["patch_size"]
    text = arguments["encoder_hidden_states"].shape[1]
    return TokenLayout(frames // depth, height // patch, width // patch, text)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    space = vae.get("spatial_compression_ratio", 8)
    return SizeRule(
        space * transformer["patch_size"], frame_step=vae.get("temporal_compression_ratio", 4)
    )


def video_layout(
    frames: int, height: int, width: int, transformer: Config, vae: Config
) -> TokenLayout:
    """Tokens of a video of some frames of height x width pixels, with the pipeline's default text."""
    space = vae.get("spatial_compression_ratio", 8) * transformer["patch_size"]
    latents = (frames - 1) // vae.get("temporal_compression_ratio", 4) + 1
    depth = transformer["patch_size_t"]
    return TokenLayout(latents // depth, height // space, width // space, TEXT_TOKENS)


HUNYUAN_VIDEO = Family(
    name="hunyuan-video",
    transformers=("HunyuanVideoTransformer3DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    video_layout=video_layout,
    cfg="embedded",
    joint=True,
    tested="declared",
)
