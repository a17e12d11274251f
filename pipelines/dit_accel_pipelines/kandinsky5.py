"""Kandinsky 5: self-attention over visual tokens alone, text in a separate cross attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Config, Family, SizeRule, TokenLayout


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """The grid of latent patches, from hidden_states ``[B, F, H, W, C]``; where the model attends sparsely itself
    (NABLA), it reorders them, and its mask keeps calls dense.
    """
    sizes = arguments["hidden_states"].shape[1:4]
    return TokenLayout(*(s // patch for s, patch in zip(sizes, config["patch_size"], strict=True)))


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    depth, side, _ = transformer["patch_size"]
    space = vae.get("spatial_compression_ratio", 8) * side
    return SizeRule(space, vae.get("temporal_compression_ratio", 4), depth)


def heads(transformer: Config) -> tuple[int, int]:
    head_dim = sum(transformer["axes_dims"])
    return transformer["model_dim"] // head_dim, head_dim


KANDINSKY5 = Family(
    name="kandinsky-5",
    transformers=("Kandinsky5Transformer3DModel",),
    attention=r"visual_transformer_blocks\.\d+\.self_attention",
    blocks={"visual_transformer_blocks": "num_visual_blocks"},
    layout=layout,
    size_rule=size_rule,
    cfg="separate",
    heads=heads,
    remark="where it attends sparsely itself (NABLA), its mask keeps calls dense",
    image_pipelines=("Kandinsky5T2IPipeline", "Kandinsky5I2IPipeline"),
    batched=("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections"),
)
