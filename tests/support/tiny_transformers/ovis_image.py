"""Tiny Ovis-Image and LongCat-Image."""

from __future__ import annotations

from functools import partial

from diffusers import LongCatImageTransformer2DModel, OvisImageTransformer2DModel
from support.tiny_transformers.base import TinyTransformer, build
from support.tiny_transformers.flux import FLUX_LIKE
from support.tiny_transformers.inputs import FULL_TEXT, IMAGE_GRID, TWO_IMAGES, flux_like
from support.tiny_transformers.touch import touch_text, touch_tokens

ROWS = [
    TinyTransformer(
        name,
        build(transformer_class, **FLUX_LIKE),
        partial(flux_like, grid),
        touch_tokens(grid),
        grid=grid,
        layers=2,
        text=FULL_TEXT,
        touch_text=touch_text,
    )
    for name, transformer_class, grid in (
        ("ovis-image", OvisImageTransformer2DModel, IMAGE_GRID),
        ("longcat-image", LongCatImageTransformer2DModel, TWO_IMAGES),
    )
]
