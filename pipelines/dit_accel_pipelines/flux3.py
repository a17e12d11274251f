"""Declare Flux 3: joint attention, text before visual tokens, in single-stream blocks.

The first blocks attend over image tokens only or over text tokens only. They stay dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import MODULAR, Family
from dit_accel_pipelines.flux import size_rule
from dit_accel_pipelines.positions import infer_grid
from dit_accel_pipelines.token_layout import Config, TokenLayout


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid from img_ids and image_cond_ids ``[S, 4]``, which are read from the device.

    Reference images of the image's size count as frames. Otherwise all visual tokens form one line.
    """
    text = arguments["encoder_hidden_states"].shape[1]
    ids = [arguments.get(name) for name in ("img_ids", "image_cond_ids")]
    grid = infer_grid(torch.cat([i[:, 1:3] for i in ids if i is not None]))
    return TokenLayout(*grid, text, text_first=True)


FLUX3 = Family(
    name="flux-3",
    transformers=("Flux3Transformer2DModel",),
    attention=r"single_transformer_blocks\.\d+\.attn",
    blocks={"single_transformer_blocks": "num_single_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    text_first=True,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "target_timestep",
        "image_cond_hidden_states",
    ),
    joint=True,
    output="image",
    remark=f"{MODULAR}. The first blocks stay dense, because each sees image tokens or text tokens only",
)
