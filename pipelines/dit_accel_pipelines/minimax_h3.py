"""Declare MiniMax-H3: attention over a packed sequence of text, conditions, audio and video, in any order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import MODULAR, Family
from dit_accel_pipelines.positions import infer_grid
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout, TokenSubset


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid from position_ids ``[S, 3]`` of the tokens at video_indices, which are read from the device.

    Frames of conditions come first. If they have another size, all visual tokens form one line.
    """
    positions, video = arguments["position_ids"], arguments["video_indices"]
    total, grid = len(positions), infer_grid(positions[video, 1:])
    is_other = torch.ones(total, dtype=torch.bool, device=video.device)
    is_other[video] = False
    text = total - len(video)
    if not is_other[text:].any():
        return TokenLayout(*grid, text, text_first=True)
    token_index = torch.cat([video, is_other.nonzero().flatten()])
    return TokenLayout(*grid, text, subsets=(TokenSubset(None, token_index),))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE, which compresses by 16 in space and by 4 in time."""
    return SizeRule(16 * transformer["patch_size"][1], 4, transformer["patch_size"][0])


MINIMAX_H3 = Family(
    name="minimax-h3",
    transformers=("MiniMaxH3Transformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="embedded",
    text_first=True,
    batch_arguments=("hidden_states", "audio_hidden_states", "encoder_hidden_states"),
    joint=True,
    # Visual tokens can be anywhere in the sequence.
    guidance=False,
    remark=MODULAR,
)
