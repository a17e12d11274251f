"""Read clips that were made elsewhere: videos, images, and folders of images.

Frames are float32 ``[T, H, W, 3]`` in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageOps, ImageSequence

from dit_accel.errors import InvalidSettings, first_line
from dit_accel.io.images import check_colours
from dit_accel.io.reading import check_regular_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif")
# ffmpeg otherwise repeats and drops frames until their rate is constant.
EVERY_FRAME = ("-fps_mode", "passthrough")
# ffmpeg otherwise rounds down, and is up to 2 of 255 too dark.
EXACT_COLOURS = ("-sws_flags", "bicubic+accurate_rnd+full_chroma_int")
ORIENTATION = 0x0112
LARGEST_16_BITS = 65535


def list_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of a folder with one of some suffixes. Hidden files are left out, as other programs do."""
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    ]


def read_clip(path: Path) -> np.ndarray:
    """Return the frames of a video file, an image, or a folder of images.

    Images are sorted by name, and numbers in names by value: 2 comes before 10.

    Raises:
        InvalidSettings: if the path cannot be read, images differ in size, or pixels are transparent.
    """
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            return _stack(_read_folder(path), path)
        if suffix in IMAGE_SUFFIXES or suffix == ".gif":
            return _stack(read_images(path), path)
        if suffix in VIDEO_SUFFIXES:
            return _stack(_read_video(path), path)
    except (OSError, ValueError, RuntimeError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InvalidSettings):
            raise
        raise InvalidSettings(f"cannot read {path}: {first_line(error)}") from None
    raise InvalidSettings(
        f"{path} is not a clip: give a video ({', '.join(VIDEO_SUFFIXES)}), an image, or a folder of images"
    )


def read_images(path: Path) -> list[np.ndarray]:
    """Return the images of a file as viewers show them, float32 ``[H, W, 3]``. Animations have several.

    Images are turned as their EXIF orientation says, and 16 bits keep their precision.

    Raises:
        InvalidSettings: for transparent pixels, because their colour depends on what is behind them.
    """
    check_regular_file(path, "image")
    with Image.open(path) as image:
        if _has_deep_colours(image):
            return [_read_deep_colours(path, image)]
        # The further images of a photo are previews.
        animated = image.format != "MPO"
        frames = ImageSequence.Iterator(image) if animated else [image]
        return [_to_rgb(ImageOps.exif_transpose(frame), path) for frame in frames]


def _read_folder(path: Path) -> list[np.ndarray]:
    files = list_files(path, IMAGE_SUFFIXES)
    if not files:
        raise InvalidSettings(f"no images in {path}: give {', '.join(IMAGE_SUFFIXES)}")
    frames = []
    for file in sorted(files, key=_natural_order):
        images = read_images(file)
        if len(images) > 1:
            raise InvalidSettings(
                f"{file} is an animation of {len(images)} frames: a folder holds single images"
            )
        frames += images
    return frames


def _read_video(path: Path) -> list[np.ndarray]:
    """Return the decoded frames of a video with 8 bits, each once."""
    check_regular_file(path, "video")
    with imageio.get_reader(
        path, format="FFMPEG", output_params=[*EVERY_FRAME, *EXACT_COLOURS]
    ) as reader:
        return [np.asarray(frame) for frame in reader]  # type: ignore[attr-defined]


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    """Return an image as float32 ``[H, W, 3]`` in [0, 1]."""
    check_colours(image, path)
    if image.mode.startswith("I"):
        grey = np.asarray(image, np.float32) / LARGEST_16_BITS
        return np.repeat(grey[..., None], 3, axis=-1)
    opaque = image.convert("RGBA") if image.has_transparency_data else image
    return np.asarray(opaque.convert("RGB"), np.float32) / 255


def _has_deep_colours(image: Image.Image) -> bool:
    """Return True for 16-bit colours, of which Pillow reads 8 bits."""
    tiles = getattr(image, "tile", None) or []
    return image.mode != "I;16" and any(str(tile.args).endswith(";16B") for tile in tiles)


def _read_deep_colours(path: Path, image: Image.Image) -> np.ndarray:
    import imageio_ffmpeg

    check_colours(image, path)
    if image.getexif().get(ORIENTATION, 1) != 1:
        raise InvalidSettings(f"{path} has 16-bit colours and is turned by EXIF: turn its pixels")
    reader = imageio_ffmpeg.read_frames(path, pix_fmt="rgb48le", bits_per_pixel=48)
    next(reader)
    values = np.frombuffer(next(reader), "<u2").reshape(image.height, image.width, 3)
    reader.close()
    return values.astype(np.float32) / LARGEST_16_BITS


def _natural_order(path: Path) -> list[tuple[str, int]]:
    """Return a sort key: the name of a file, split into texts and numbers."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", path.stem)]


def _stack(frames: list[np.ndarray], path: Path) -> np.ndarray:
    if not frames:
        raise InvalidSettings(f"no frames in {path}")
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise InvalidSettings(
            f"{path} has images of different sizes: {sorted(s[:2] for s in sizes)}"
        )
    clip = np.stack(frames)
    return clip.astype(np.float32) / 255 if clip.dtype == np.uint8 else clip
