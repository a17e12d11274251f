"""Tiny random transformers of all families, one row each."""

from tiny_transformers import first, further, image, video
from tiny_transformers.base import TinyTransformer

ROWS: list[TinyTransformer] = [*first.ROWS, *video.ROWS, *image.ROWS, *further.ROWS]
