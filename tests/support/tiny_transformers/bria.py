"""Tiny Bria, Bria Fibo and Bria Fibo 2."""

from __future__ import annotations

from functools import partial

import diffusers
import torch
from diffusers import BriaFiboTransformer2DModel, BriaTransformer2DModel
from support.tiny_transformers.base import (
    Inputs,
    Position,
    TinyTransformer,
    WithParameters,
    build,
)
from support.tiny_transformers.flux import FLUX_LIKE
from support.tiny_transformers.inputs import (
    BATCH,
    FULL_TEXT,
    IMAGE_GRID,
    ROPE_AXES,
    TEXT_TOKENS,
    TWO_IMAGES,
    VALID_TEXT,
    flux_like,
    image_latents,
    noise,
    padding_mask,
)
from support.tiny_transformers.touch import touch_text, touch_tokens

# Parameter with the tokens that replace text.
GIST_TOKENS = "perceiver.latent_queries"


def fibo_inputs() -> Inputs:
    frames, height, width = TWO_IMAGES
    visible = torch.ones(BATCH, frames * height * width, dtype=torch.bool)
    mask = torch.cat([padding_mask(), visible], 1)[:, None, None]
    return {
        **flux_like(TWO_IMAGES),
        "text_encoder_layers": [noise(BATCH, TEXT_TOKENS, 16, seed=seed) for seed in (2, 3)],
        "joint_attention_kwargs": {"attention_mask": mask},
    }


def fibo2_inputs(valid: tuple[int, ...]) -> Inputs:
    """Return inputs with texts of the given numbers of tokens; 4 gist tokens replace 7, and 3 replace 2."""
    return {
        **image_latents(),
        "encoder_hidden_states": noise(BATCH, 2, TEXT_TOKENS, 16, seed=1),
        "encoder_attention_mask": padding_mask(TEXT_TOKENS, valid),
        "context_latents": [noise(BATCH, 4, 2 * IMAGE_GRID[1], 2 * IMAGE_GRID[2], seed=2)],
        GIST_TOKENS: noise(4, 32, seed=3),
    }


def touch_fibo2(inputs: Inputs, sample: int, position: Position) -> None:
    """Change a token of the image, which is frame 0, or of the context image."""
    frame, row, column = position
    image = inputs["context_latents"][0] if frame else inputs["hidden_states"]
    image[sample, :, 2 * row, 2 * column] += 1


def touch_gist_token(inputs: Inputs, sample: int, token: int) -> None:
    """Change a gist token, which all samples share."""
    inputs[GIST_TOKENS][token] = -5 * inputs[GIST_TOKENS][token]


fibo2 = build(
    getattr(diffusers, "BriaFibo2Transformer2DModel", None),
    in_channels=4,
    dim=32,
    n_layers=2,
    n_refiner_layers=1,
    n_heads=2,
    cap_feat_dim=16,
    injection_layer_ids=(1,),
    perceiver_num_layers=1,
    min_num_gist_tokens=2,
    max_num_gist_tokens=4,
    gist_step=1,
    gist_min_text_len=1,
    gist_max_text_len=7,
    axes_dims=ROPE_AXES,
    axes_lens=(64, 32, 32),
)

ROWS = [
    TinyTransformer(
        "bria",
        build(BriaTransformer2DModel, **FLUX_LIKE),
        partial(flux_like, IMAGE_GRID),
        touch_tokens(IMAGE_GRID),
        grid=IMAGE_GRID,
        layers=2,
        text=FULL_TEXT,
        touch_text=touch_text,
    ),
    TinyTransformer(
        "bria-fibo",
        build(BriaFiboTransformer2DModel, **FLUX_LIKE, text_encoder_dim=16),
        fibo_inputs,
        touch_tokens(TWO_IMAGES),
        grid=TWO_IMAGES,
        layers=2,
        text=VALID_TEXT,
        touch_text=touch_text,
    ),
    *(
        WithParameters(
            "bria-fibo-2",
            fibo2,
            partial(fibo2_inputs, valid),
            touch_fibo2,
            grid=TWO_IMAGES,
            layers=2,
            text=gist_tokens,
            touch_text=touch_gist_token,
        )
        for valid, gist_tokens in (((TEXT_TOKENS, 2), (4, 3)), (FULL_TEXT, (4, 4)))
    ),
]
