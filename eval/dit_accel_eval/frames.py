"""Frames on disk: kept for comparison (safetensors), for a page (VP9 in WebM), or made elsewhere (video
files, folders of pictures). Frames are float32 ``[T, H, W, 3]`` in [0, 1].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dit_accel.errors import BadInput
from dit_accel.files import written_whole
from dit_accel.media import to_bytes

FORMAT = "dit_accel frames 1"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif")
KEYFRAMES = 8  # frames from one to the next: a page seeks by single frames


def kept(frames: np.ndarray) -> np.ndarray:
    """Frames as `keep_frames` keeps them: rounded to float16, 72 dB or more from what they were."""
    return frames.astype(np.float16).astype(np.float32)


def keep_frames(path: Path, frames: np.ndarray, about: Mapping[str, Any]) -> None:
    """Write frames as float16, with what they are as JSON in the file's metadata."""
    with written_whole(path) as temporary:
        told = {"format": FORMAT, "about": json.dumps(about)}
        save_file({"frames": frames.astype(np.float16)}, temporary, told)


def load_frames(path: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    """What `keep_frames` wrote, or None if there is no such file or it cannot be read."""
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                return None
            return file.get_tensor("frames").astype(np.float32), json.loads(about["about"])
    except (OSError, SafetensorError, ValueError):
        return None


def write_webm(path: Path, frames: np.ndarray, fps: int) -> None:
    """VP9 in WebM, which every browser plays; odd sizes lose a row or column."""
    height, width = (n - n % 2 for n in frames.shape[1:3])
    with (
        written_whole(path) as temporary,
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
        for frame in to_bytes(frames[:, :height, :width]):
            writer.append_data(frame)  # type: ignore[attr-defined]


def difference(clip: np.ndarray, reference: np.ndarray, gain: float = 4.0) -> np.ndarray:
    """Where two clips differ: size of the difference per channel times ``gain``, black where there is none."""
    return np.clip(gain * np.abs(clip - reference), 0.0, 1.0)


def read_clip(path: Path) -> np.ndarray:
    """Frames of a video file, a picture, or a folder of pictures in the order of their names.

    Raises:
        BadInput: if it cannot be read, or pictures differ in size.
    """
    try:
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
            if not files:
                raise BadInput(f"no pictures in {path}: accepted are {', '.join(PICTURES)}")
            return _stacked([_picture(file) for file in files], path)
        if path.suffix.lower() in PICTURES:
            return _stacked([_picture(path)], path)
        if path.suffix.lower() in VIDEOS:
            with imageio.get_reader(path) as reader:
                return _stacked([np.asarray(frame)[..., :3] for frame in reader], path)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    raise BadInput(
        f"{path} is no clip: give a video ({', '.join(VIDEOS)}), a picture, or a folder of pictures"
    )


def _picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _stacked(frames: list[np.ndarray], path: Path) -> np.ndarray:
    if not frames:
        raise BadInput(f"no frames in {path}")
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise BadInput(f"{path} has pictures of different sizes: {sorted(s[:2] for s in sizes)}")
    return np.stack(frames).astype(np.float32) / 255
