"""Declare Chroma: Flux with a mask for padded text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines import flux
from dit_accel_pipelines.family import Family
from dit_accel_pipelines.token_layout import Config, TokenLayout, drop_padded_text


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid from img_ids ``[S, 3]``, without text that a boolean attention_mask ``[B, T + S]`` hides.

    A mask of another dtype hides nothing, because PyTorch adds it to the attention logits.
    """
    padded = flux.layout(arguments, config)
    mask = arguments.get("attention_mask")
    if mask is None or mask.dtype != torch.bool:
        return padded
    return drop_padded_text(padded, mask[:, : padded.text_tokens])


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
    batch_arguments=("hidden_states", "encoder_hidden_states", "timestep", "attention_mask"),
    joint=True,
    output="image",
    remark="Calls of its pipeline stay dense, because the pipeline adds a float mask to the attention logits",
)
