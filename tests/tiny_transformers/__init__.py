"""Tiny random transformers of all families, one row each."""

from tiny_transformers import first
from tiny_transformers.base import TinyTransformer

ROWS: list[TinyTransformer] = [*first.ROWS]
