"""Declare Allegro: self-attention (``attn1``) over visual tokens only."""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule, latent_scale
from dit_accel_pipelines.token_layout import Config, latent_layout


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule; all latent frames hold the same number of frames."""
    space = latent_scale(vae) * transformer["patch_size"]
    time = vae.get("temporal_compression_ratio", 4)
    return SizeRule(space, time, transformer["patch_size_t"], first_frames=0)


ALLEGRO = Family(
    name="allegro",
    transformers=("AllegroTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=latent_layout,
    size_rule=size_rule,
    cfg="batched",
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "attention_mask",
        "encoder_attention_mask",
    ),
)
