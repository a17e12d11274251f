"""Read and write frames: lossless files, videos for a page, and clips that were made elsewhere.

Frames are float32 ``[T, H, W, 3]`` in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dit_accel.errors import InvalidSettings
from dit_accel.io.atomic import atomic_write
from dit_accel.io.media import to_bytes
from dit_accel.io.reading import check_regular_file

FORMAT = "dit_accel frames 2"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif")
# Distance of key frames. It is small because a page seeks single frames.
KEYFRAMES = 8


def save_frames(path: Path, frames: np.ndarray) -> None:
    """Write frames without loss: as float16 if that type holds them exactly, as it does those of 16-bit pipelines."""
    half = frames.astype(np.float16)
    exact = half if np.array_equal(half.astype(frames.dtype), frames) else frames
    # safetensors ignores strides.
    contiguous = np.ascontiguousarray(exact)
    with atomic_write(path) as temporary:
        save_file({"frames": contiguous}, temporary, {"format": FORMAT})


def load_frames(path: Path) -> np.ndarray | None:
    """Return the frames that `save_frames` wrote, or None for a missing or unreadable file."""
    try:
        with safe_open(path, "np") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                return None
            return np.asarray(file.get_tensor("frames"), np.float32)
    except (OSError, SafetensorError, ValueError):
        return None


def write_webm(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Write VP9 in WebM, which every browser plays. An odd height or width loses one row or column."""
    with (
        atomic_write(path) as temporary,
        imageio.get_writer(
            temporary,
            format="FFMPEG",
            fps=fps,
            codec="libvpx-vp9",
            quality=None,
            macro_block_size=1,
            pixelformat="yuv420p",
            output_params=["-crf", "24", "-b:v", "0", "-g", str(KEYFRAMES), "-row-mt", "1"],
        ) as writer,
    ):
        for frame in frames:
            height, width = (n - n % 2 for n in frame.shape[:2])
            writer.append_data(to_bytes(frame[:height, :width]))  # type: ignore[attr-defined]


def difference(clip: np.ndarray, reference: np.ndarray, gain: float = 4.0) -> Iterator[np.ndarray]:
    """Yield the absolute difference of two clips per channel times ``gain``, frame by frame."""
    for frame, other in zip(clip, reference, strict=True):
        yield np.clip(gain * np.abs(frame - other), 0.0, 1.0)


def read_clip(path: Path) -> np.ndarray:
    """Return the frames of a video file, an image, or a folder of images.

    Images are sorted by name, and numbers in names by value: 2 comes before 10.

    Raises:
        InvalidSettings: if the path cannot be read, or images differ in size.
    """
    try:
        if path.is_dir():
            files = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
            if not files:
                raise InvalidSettings(f"no images in {path}: give {', '.join(IMAGE_SUFFIXES)}")
            return _stack([_read_image(file) for file in sorted(files, key=_natural_order)], path)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return _stack([_read_image(path)], path)
        if path.suffix.lower() in VIDEO_SUFFIXES:
            check_regular_file(path, "video")
            with imageio.get_reader(path) as reader:
                return _stack([np.asarray(frame)[..., :3] for frame in reader], path)  # type: ignore[attr-defined]
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        if isinstance(error, InvalidSettings):
            raise
        raise InvalidSettings(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    raise InvalidSettings(
        f"{path} is not a clip: give a video ({', '.join(VIDEO_SUFFIXES)}), an image, or a folder of images"
    )


def _natural_order(path: Path) -> list[tuple[str, int]]:
    """Return a sort key: the name of a file, split into texts and numbers."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", path.stem)]


def _read_image(path: Path) -> np.ndarray:
    check_regular_file(path, "image")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _stack(frames: list[np.ndarray], path: Path) -> np.ndarray:
    if not frames:
        raise InvalidSettings(f"no frames in {path}")
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise InvalidSettings(
            f"{path} has images of different sizes: {sorted(s[:2] for s in sizes)}"
        )
    return np.stack(frames).astype(np.float32) / 255
