"""Declare Mochi: joint attention, one sample per call, with visual tokens before the valid text tokens."""

from __future__ import annotations

from dit_accel_pipelines.family import Family
from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, latent_layout


def size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of the VAE, which compresses by 8 in space and by 6 in time."""
    return SizeRule(8 * transformer["patch_size"], 6)


MOCHI = Family(
    name="mochi",
    transformers=("MochiTransformer3DModel",),
    attention=r"transformer_blocks\.\d+\.attn1",
    blocks={"transformer_blocks": "num_layers"},
    layout=latent_layout,
    size_rule=size_rule,
    cfg="batched",
    text_tokens=lambda transformer: transformer.get("max_sequence_length", 256),
    batch_arguments=(
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "encoder_attention_mask",
    ),
    joint=True,
    # Padded text is removed inside the attention.
    variable_text=True,
)
