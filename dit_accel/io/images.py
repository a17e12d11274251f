"""Read and write images.

Frames are float arrays ``[H, W, 3]`` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dit_accel.errors import InvalidSettings, first_line

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# Pillow's modes of 16-bit grey images.
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


def to_bytes(frames: np.ndarray) -> np.ndarray:
    """Return frames as uint8 of the same shape, rounded."""
    import numpy as np

    scaled: np.ndarray = (np.clip(frames, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
    return scaled


def read_image(path: str | Path) -> Image.Image:
    """Return an image file in RGB as viewers show it.

    The image is turned as its EXIF orientation says, 16 bits are scaled to 8, and transparent pixels are laid over
    white.

    Raises:
        InvalidSettings: if the file is missing, is not an image, or holds values without a known range.
    """
    from PIL import Image, ImageOps

    if not Path(path).is_file():
        raise InvalidSettings(f"cannot read image {path}: no such file; give an image file")
    try:
        with Image.open(path) as image:
            return _flatten(ImageOps.exif_transpose(image), str(path))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InvalidSettings):
            raise
        raise InvalidSettings(f"cannot read image {path}: {first_line(error)}") from None


def _flatten(image: Image.Image, path: str) -> Image.Image:
    """Return an opaque 8-bit RGB image."""
    import numpy as np
    from PIL import Image

    if image.mode in DEEP_MODES:
        # 65535 / 255 is 257.
        scaled = (np.asarray(image, np.float64) / 257 + 0.5).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if image.mode in ("I", "F"):
        raise InvalidSettings(
            f"image {path} has 32-bit values of unknown range: save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def write_png(path: Path, image: Image.Image, texts: Mapping[str, str]) -> None:
    """Write a PNG file with texts in its metadata, and read it back.

    Raises:
        OSError: if the file is not complete.
    """
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    image.save(path, format="PNG", pnginfo=info)
    with Image.open(path) as written:
        written.load()
