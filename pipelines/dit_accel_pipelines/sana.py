"""Declare Sana: linear self-attention (``attn1``) over visual tokens only, which only guidance supports."""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, latent_layout


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the deep-compression VAE, which halves the size at every level but the last."""
    levels = len(vae.get("encoder_block_out_channels", (0,) * 6))
    return SizeRule(2 ** (levels - 1) * transformer["patch_size"], 1)


SANA = Family(
    name="sana",
    transformers=("SanaTransformer2DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=latent_layout,
    size_rule=size_rule,
    cfg="batched",
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "guidance",
        "encoder_attention_mask",
        "attention_mask",
        "controlnet_block_samples",
    ),
    output="image",
    linear=True,
)
