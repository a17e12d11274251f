"""Chroma: Flux with a mask of the text's padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines import flux
from dit_accel_pipelines.family import Config, Family, TokenLayout, valid_text


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid from img_ids ``[S, 3]``, without what a boolean attention_mask ``[B, T + S]`` hides. PyTorch adds any
    other mask to the logits, so it hides nothing.
    """
    grid = flux.layout(arguments, config)
    mask = arguments.get("attention_mask")
    if mask is None or mask.dtype != torch.bool:
        return grid
    return valid_text(grid, mask[:, : grid.text_tokens])


CHROMA = Family(
    name="chroma",
    transformers=("ChromaTransformer2DModel",),
    attention=r"(single_)?transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=flux.size_rule,
    cfg="separate",
    text_tokens=lambda _: 512,
    text_first=True,
    batched=("hidden_states", "encoder_hidden_states", "timestep", "attention_mask"),
    joint=True,
    output="image",
    remark="its pipeline adds a float mask to the logits, and such calls stay dense",
)
