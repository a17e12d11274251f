"""Tiny Ideogram 4."""

from __future__ import annotations

import torch
from diffusers import Ideogram4Transformer2DModel
from support.tiny_transformers.base import Inputs, Position, TinyTransformer, build
from support.tiny_transformers.inputs import (
    BATCH,
    HEADS,
    IMAGE_GRID,
    TEXT_TOKENS,
    VALID_TEXT,
    noise,
    padding_mask,
    position_ids,
    visual_tokens,
)
from torch import Tensor, nn


class WithoutText(TinyTransformer):
    """Row whose prediction also covers text, which comes first and may be padding."""

    def run(self, transformer: nn.Module, inputs: Inputs | None = None) -> Tensor:
        return super().run(transformer, inputs)[:, TEXT_TOKENS:]


def inputs() -> Inputs:
    """Return inputs with text that is padded at its beginning."""
    image = torch.ones(BATCH, IMAGE_GRID[1] * IMAGE_GRID[2], dtype=torch.bool)
    segments = torch.cat([padding_mask().flip(1), image], 1).long() * 2 - 1
    indicator = torch.where(segments > 0, 3, 0)
    indicator[:, TEXT_TOKENS:] = 2
    text = torch.arange(TEXT_TOKENS)[:, None].expand(-1, 3)
    positions = torch.cat([text, position_ids(IMAGE_GRID) + 65536])
    return {
        **visual_tokens((1, 1, len(positions))),
        "encoder_hidden_states": noise(BATCH, len(positions), 16, seed=1),
        "position_ids": positions.expand(BATCH, -1, -1),
        "segment_ids": segments,
        "indicator": indicator,
    }


def touch(inputs: Inputs, sample: int, position: Position) -> None:
    _, row, column = position
    inputs["hidden_states"][sample, TEXT_TOKENS + row * IMAGE_GRID[2] + column] += 1


def touch_text(inputs: Inputs, sample: int, token: int) -> None:
    padding = TEXT_TOKENS - VALID_TEXT[sample]
    inputs["encoder_hidden_states"][sample, padding + token] += 1


ROWS = [
    WithoutText(
        "ideogram-4",
        build(
            Ideogram4Transformer2DModel,
            in_channels=16,
            num_layers=2,
            intermediate_size=32,
            adaln_dim=8,
            llm_features_dim=16,
            mrope_section=(4, 2, 2),
            **HEADS,
        ),
        inputs,
        touch,
        grid=IMAGE_GRID,
        layers=2,
        text=VALID_TEXT,
        touch_text=touch_text,
    )
]
