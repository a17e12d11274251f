"""Flux 3: joint attention, text before visual tokens, in single-stream blocks. The first few blocks, of which
each sees image or text alone, stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_accel_pipelines.family import MODULAR, Config, Family, TokenLayout
from dit_accel_pipelines.flux import size_rule
from dit_accel_pipelines.positions import grid_of


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid from img_ids and image_cond_ids ``[S, 4]`` (read from the device): reference images are frames; a
    line where they have another size.
    """
    text = arguments["encoder_hidden_states"].shape[1]
    ids = [arguments.get(name) for name in ("img_ids", "image_cond_ids")]
    grid = grid_of(torch.cat([i[:, 1:3] for i in ids if i is not None]))
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
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep", "target_timestep"),
        "image_cond_hidden_states",
    ),
    joint=True,
    remark=f"{MODULAR}; its first blocks, of image or text alone, stay dense",
    output="image",
)
