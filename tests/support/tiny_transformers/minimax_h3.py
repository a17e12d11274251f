"""Tiny MiniMax-H3."""

from __future__ import annotations

import torch
from diffusers import MiniMaxH3Transformer3DModel
from support.tiny_transformers.base import Inputs, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    TEXT_TOKENS,
    VIDEO_GRID,
    noise,
    position_ids,
)
from support.tiny_transformers.touch import touch_arguments, touch_tokens

AUDIO = 4


def inputs() -> Inputs:
    """Return a sequence of text, one frame as a condition, audio and the other frames, in this order."""
    frame = VIDEO_GRID[1] * VIDEO_GRID[2]
    lengths = [TEXT_TOKENS, frame, AUDIO, (VIDEO_GRID[0] - 1) * frame]
    tags = torch.tensor([0, 1, 2, 1]).repeat_interleave(torch.tensor(lengths))
    positions = torch.zeros(sum(lengths), 3, dtype=torch.float64)
    text, condition, audio, others = torch.arange(sum(lengths)).split(lengths)
    positions[text, 0] = text.double()
    video = torch.cat([condition, others])
    positions[video] = position_ids(VIDEO_GRID).double() * 0.7 + 0.1
    # The condition has the time of the first generated frame.
    positions[condition, 0] = 0.8
    positions[audio, 2] = 0.1
    return {
        "hidden_states": noise(BATCH, len(video), 16),
        "audio_hidden_states": noise(BATCH, AUDIO, 4, seed=2),
        "encoder_hidden_states": noise(BATCH, TEXT_TOKENS, 16, seed=1),
        "timestep": torch.tensor([0.0, 500.0]),
        "timestep_indices": (tags > 0).long(),
        "token_tags": tags,
        "position_ids": positions,
        "video_indices": video,
        "audio_indices": audio,
        "text_indices": text,
    }


ROWS = [
    TinyTransformer(
        "minimax-h3",
        build(
            MiniMaxH3Transformer3DModel,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            ffn_dim=32,
            in_channels=4,
            audio_in_channels=4,
            text_dim=16,
            freq_dim=16,
            time_embed_hidden_dim=16,
            time_embed_dim=8,
            rope_freq_dim=2,
            **HEADS,
        ),
        inputs,
        touch_tokens(VIDEO_GRID),
        grid=VIDEO_GRID,
        layers=2,
        text=(TEXT_TOKENS + AUDIO, TEXT_TOKENS + AUDIO),
        touch_text=touch_arguments("encoder_hidden_states", "audio_hidden_states"),
    )
]
