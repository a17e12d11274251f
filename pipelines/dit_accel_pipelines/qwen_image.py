"""Declare Qwen-Image: joint attention, text before visual tokens.

The images of Edit and the layers of Layered come one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family, Postprocess
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout, drop_padded_text


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid from img_shapes, which has (frames, rows, columns) of each image of each sample.

    Images of the same size count as frames. Otherwise all visual tokens, hidden_states ``[B, S, C]``, form one
    line. A mask hides padded text.
    """
    shapes = arguments["img_shapes"][0]
    images = shapes if isinstance(shapes, list) else [shapes]
    sizes = {tuple(image[1:]) for image in images}
    grid = (1, 1, arguments["hidden_states"].shape[1])
    if len(sizes) == 1:
        grid = (sum(image[0] for image in images), *sizes.pop())
    text = arguments["encoder_hidden_states"].shape[1]
    padded = TokenLayout(*grid, text, text_first=True)
    mask = arguments.get("encoder_hidden_states_mask")
    return padded if mask is None else drop_padded_text(padded, mask)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule; the pipeline packs a patch of latents into one token."""
    return SizeRule(
        2 ** len(vae.get("temperal_downsample", (0,) * 3)) * transformer["patch_size"], 1
    )


QWEN_IMAGE = Family(
    name="qwen-image",
    transformers=("QwenImageTransformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn",
    blocks={"transformer_blocks": "num_layers"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    text_tokens=lambda _: 512,
    text_first=True,
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "encoder_hidden_states_mask",
        "timestep",
        "guidance",
        "additional_t_cond",
    ),
    joint=True,
    output="image",
    postprocess=(
        Postprocess(
            "scales the guided prediction to the norm of the conditional one", "cfg_normalize"
        ),
    ),
)
