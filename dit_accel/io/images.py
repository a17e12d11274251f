"""Read and write images.

Frames are float arrays ``[H, W, 3]`` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dit_accel.errors import InvalidSettings, first_line
from dit_accel.io.reading import check_regular_file

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


def to_bytes(frames: np.ndarray) -> np.ndarray:
    """Return frames as uint8 of the same shape, rounded."""
    import numpy as np

    scaled: np.ndarray = (np.clip(frames, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
    return scaled


def read_image(path: str | Path) -> Image.Image:
    """Return an image file in RGB as viewers show it.

    The image is turned as its EXIF orientation says, and 16 bits are scaled to 8.

    Raises:
        InvalidSettings: if the file is missing, is not one image, or holds values without a known range or
            transparent pixels, because their colour depends on what is behind them.
    """
    from PIL import Image, ImageOps

    check_regular_file(path, "image")
    try:
        with Image.open(path) as image:
            _check_still(image, path)
            return ImageOps.exif_transpose(_to_rgb(image, path))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InvalidSettings):
            raise
        raise InvalidSettings(f"cannot read image {path}: {first_line(error)}") from None


def _check_still(image: Image.Image, path: str | Path) -> None:
    # The further images of a photo are previews.
    frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
    if frames > 1:
        raise InvalidSettings(f"image {path} is an animation of {frames} frames: give one of them")


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """Return an opaque image with 8 bits, which keeps the EXIF data."""
    import numpy as np
    from PIL import Image

    check_colours(image, path)
    if image.mode.startswith("I"):
        # 65535 / 255 is 257.
        scaled = Image.fromarray((np.asarray(image, np.float64) / 257 + 0.5).astype(np.uint8))
        scaled.info.update(image.info)
        scaled.getexif().update(image.getexif())
        return scaled.convert("RGB")
    return (
        image.convert("RGBA").convert("RGB")
        if image.has_transparency_data
        else image.convert("RGB")
    )


def check_colours(image: Image.Image, path: str | Path) -> None:
    """Raise InvalidSettings for values without a known range and for transparent pixels.

    The colour of a transparent pixel depends on what is behind it.
    """
    import numpy as np

    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", None)):
        raise InvalidSettings(f"{path} has values of unknown range: save it with 8 or 16 bits")
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise InvalidSettings(f"{path} has transparent pixels: lay it over a background first")


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
