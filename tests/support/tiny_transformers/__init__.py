"""Tiny random transformers of all families that the installed diffusers has, one row each."""

from support.tiny_transformers import (
    first,
    image,
    picture_flux_like,
    picture_further,
    video,
    video_further,
    video_wan_like,
)
from support.tiny_transformers.base import TinyTransformer
from support.tiny_transformers.shared import absent

PARTS = (first, video, image, video_wan_like, video_further, picture_further, picture_flux_like)
ROWS: list[TinyTransformer] = [
    row for part in PARTS for row in part.ROWS if row.build is not absent
]
