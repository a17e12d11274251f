"""Declare Kandinsky 5: self-attention over visual tokens only, with a separate cross-attention to text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout


def layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, F, H, W, C]``.

    With the model's own sparse attention (NABLA), tokens are in another order. Its mask keeps these calls dense.
    """
    sizes = arguments["hidden_states"].shape[1:4]
    grid = (size // patch for size, patch in zip(sizes, config["patch_size"], strict=True))
    return TokenLayout(*grid)


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE's latents in patches."""
    depth, side, _ = transformer["patch_size"]
    space = vae.get("spatial_compression_ratio", 8) * side
    return SizeRule(space, vae.get("temporal_compression_ratio", 4), depth)


def heads(transformer: Config) -> tuple[int, int]:
    """Return the number of heads and head_dim, which is the sum of RoPE's axes."""
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
    batch_arguments=("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections"),
    image_pipelines=("Kandinsky5T2IPipeline", "Kandinsky5I2IPipeline"),
    remark="Calls stay dense with the model's own sparse attention (NABLA), because it sets a mask",
)
