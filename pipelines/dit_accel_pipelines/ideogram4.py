"""Ideogram 4: attention over one sequence, text before visual tokens. Its unconditional predictions come from
another transformer, which sees no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, TokenLayout, valid_text
from dit_accel_pipelines.flux import images, size_rule

IMAGE = 2  # indicator of an image's token


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid from position_ids ``[B, S, 3]`` (read from the device) of the tokens that indicator ``[B, S]`` says
    are of the image, which are the last; text is padded at its beginning, with another segment.
    """
    indicator, segments = arguments["indicator"], arguments["segment_ids"]
    text = int((indicator[0] != IMAGE).sum())
    found = images(arguments["position_ids"][0, text:], text)
    return valid_text(found, segments[:, :text] == segments[:, -1:])


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
    batched=(
        *("hidden_states", "encoder_hidden_states", "timestep"),
        *("position_ids", "segment_ids", "indicator"),
    ),
    joint=True,
    output="image",
    guidance=False,  # the other prediction of a step would go without the difference
)
