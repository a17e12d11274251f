"""Frames on disk: kept for comparison (safetensors), for a page (VP9 in WebM), or made elsewhere (video
files, folders of pictures). Frames are float32 ``[T, H, W, 3]`` in [0, 1].
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

FORMAT = "dit_accel frames 2"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif")
KEYFRAMES = 8  # frames from one to the next: a page seeks by single frames


def keep_frames(path: Path, frames: np.ndarray) -> None:
    """Write frames without loss: as float16 where that holds them, as it does those of 16-bit pipelines."""
    half = frames.astype(np.float16)
    kept = half if np.array_equal(half.astype(frames.dtype), frames) else frames
    kept = np.ascontiguousarray(kept)  # safetensors writes memory as it lies, whatever the strides
    with atomic_write(path) as temporary:
        save_file({"frames": kept}, temporary, {"format": FORMAT})


def load_frames(path: Path) -> np.ndarray | None:
    """What `keep_frames` wrote, or None if there is no such file or it cannot be read."""
    try:
        with safe_open(path, "np") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                return None
            return file.get_tensor("frames").astype(np.float32)
    except (OSError, SafetensorError, ValueError):
        return None


def write_webm(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """VP9 in WebM, which every browser plays, frame by frame; odd sizes lose a row or column."""
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
    """Where two clips differ, frame by frame: size of the difference per channel times ``gain``, black where
    there is none.
    """
    for own, other in zip(clip, reference, strict=True):
        yield np.clip(gain * np.abs(own - other), 0.0, 1.0)


def read_clip(path: Path) -> np.ndarray:
    """Frames of a video file, a picture, or a folder of pictures in the order of their names, 2 before 10.

    Raises:
        InvalidSettings: if it cannot be read, or pictures differ in size.
    """
    try:
        if path.is_dir():
            files = [p for p in path.iterdir() if p.suffix.lower() in PICTURES]
            if not files:
                raise InvalidSettings(f"no pictures in {path}: accepted are {', '.join(PICTURES)}")
            return _stacked([_picture(file) for file in sorted(files, key=in_order)], path)
        if path.suffix.lower() in PICTURES:
            return _stacked([_picture(path)], path)
        if path.suffix.lower() in VIDEOS:
            with imageio.get_reader(path) as reader:
                return _stacked([np.asarray(frame)[..., :3] for frame in reader], path)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InvalidSettings):
            raise
        raise InvalidSettings(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    raise InvalidSettings(
        f"{path} is no clip: give a video ({', '.join(VIDEOS)}), a picture, or a folder of pictures"
    )


def in_order(path: Path) -> list[tuple[str, int]]:
    """A name as text and numbers in turn, to sort by."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", path.stem)]


def _picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _stacked(frames: list[np.ndarray], path: Path) -> np.ndarray:
    if not frames:
        raise InvalidSettings(f"no frames in {path}")
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise InvalidSettings(
            f"{path} has pictures of different sizes: {sorted(s[:2] for s in sizes)}"
        )
    return np.stack(frames).astype(np.float32) / 255
