"""Read and write frames: lossless files, and videos for a page.

Frames are float32 ``[T, H, W, 3]`` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dit_accel.io.atomic import atomic_write
from dit_accel.io.video import VP9, encode_video

FORMAT = "dit_accel frames 2"


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
    """Write VP9 in WebM, which every browser plays. An odd height or width loses one row or column.

    Raises:
        RunFailed: if the file cannot be written whole.
    """
    with atomic_write(path) as temporary:
        encode_video(temporary, frames, fps, VP9)


def difference(clip: np.ndarray, reference: np.ndarray, gain: float = 4.0) -> Iterator[np.ndarray]:
    """Yield the absolute difference of two clips per channel times ``gain``, frame by frame."""
    for frame, other in zip(clip, reference, strict=True):
        yield np.clip(gain * np.abs(frame - other), 0.0, 1.0)


def holds_frames(path: Path, count: int) -> bool:
    """Return True if a video exists and has a number of frames."""
    try:
        return path.is_file() and imageio_ffmpeg.count_frames_and_secs(str(path))[0] == count
    except RuntimeError:
        return False
