"""Declare Ideogram 4: attention over one sequence, text before visual tokens.

Unconditional predictions come from a second transformer, which sees no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.flux import layout_from_ids, size_rule
from dit_accel_pipelines.token_layout import Config, TokenLayout, drop_padded_text

# Value of indicator for image tokens.
IMAGE = 2


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid from position_ids ``[B, S, 3]`` of the tokens that indicator ``[B, S]`` marks as image.

    Image tokens come last. Text is padded at its beginning, and padding has another segment id. Positions and
    indicator are read from the device.
    """
    indicator, segments = arguments["indicator"], arguments["segment_ids"]
    text = int((indicator[0] != IMAGE).sum())
    padded = layout_from_ids(arguments["position_ids"][0, text:], text)
    return drop_padded_text(padded, segments[:, :text] == segments[:, -1:])


IDEOGRAM4 = Family(
    name="ideogram-4",
    transformers=("Ideogram4Transformer2DModel",),
    attention=r"layers\.\d+\.attention",
    blocks={"layers": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="embedded",
    text_tokens=lambda _: 2048,
    text_first=True,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "position_ids",
        "segment_ids",
        "indicator",
    ),
    joint=True,
    output="image",
    # The second transformer's prediction would lack the difference that guidance adds.
    guidance=False,
)
