"""MiniMax-H3: attention over a packed sequence of text, conditions, audio and video; video tokens anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import MODULAR, Config, Family, SizeRule, TokenLayout, TokenSubset
from dit_accel_pipelines.positions import grid_of


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid from position_ids ``[S, 3]`` of the tokens at video_indices (read from the device): frames of
    conditions are the first ones; a line where they have another size.
    """
    positions, video = arguments["position_ids"], arguments["video_indices"]
    total, grid = len(positions), grid_of(positions[video, 1:])
    others = torch.ones(total, dtype=torch.bool, device=video.device)
    others[video] = False
    text = total - len(video)
    if not others[text:].any():
        return TokenLayout(*grid, text, text_first=True)
    places = torch.cat([video, others.nonzero().flatten()])
    return TokenLayout(*grid, text, parts=(TokenSubset(None, places),))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
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
    batched=("hidden_states", "audio_hidden_states", "encoder_hidden_states"),
    joint=True,
    remark=MODULAR,
    guidance=False,  # visual tokens lie anywhere
)
