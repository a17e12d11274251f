"""Frames to files and back: mp4 (PNG for one frame), with the settings that made them in the file's
metadata.

Frames are ``[T, H, W, 3]`` float arrays in [0, 1]. Files are written under a temporary name and
renamed when complete.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from dit_accel.errors import InvalidSettings
from dit_accel.io.atomic import atomic_write

METADATA_KEY = "dit_accel"


def to_bytes(frames: np.ndarray) -> np.ndarray:
    return (np.clip(frames, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def write_clip(path: Path, frames: np.ndarray, fps: int, metadata: Mapping[str, Any]) -> None:
    """Write mp4 (H.264), or PNG for a ``.png`` path (its first frame), with metadata as JSON
    inside.
    """
    text = json.dumps({METADATA_KEY: metadata})
    with atomic_write(path) as temporary:
        if path.suffix == ".png":
            info = PngImagePlugin.PngInfo()
            info.add_text(METADATA_KEY, text)
            Image.fromarray(to_bytes(frames[0])).save(temporary, pnginfo=info)
            return
        with imageio.get_writer(
            temporary,
            format="FFMPEG",
            fps=fps,
            codec="libx264",
            quality=8,
            macro_block_size=2,
            output_params=["-metadata", f"comment={text}"],
        ) as writer:
            for frame in to_bytes(frames):
                writer.append_data(frame)  # type: ignore[attr-defined]


def read_metadata(path: Path) -> dict[str, Any]:
    """The settings kept in an output of `write_clip`.

    Raises:
        InvalidSettings: if the file is missing or holds none.
    """
    texts = read_tags(path)
    for name in ("comment", METADATA_KEY):
        try:
            return json.loads(texts[name])[METADATA_KEY]
        except (ValueError, KeyError, TypeError):
            continue
    raise InvalidSettings(
        f"{path} holds no settings of dit-accel: give a file that `dit-accel render` or ComfyUI with our nodes wrote"
    )


def read_tags(path: Path) -> dict[str, str]:
    """All texts in a file's metadata, by name in lower case.

    Raises:
        InvalidSettings: if there is no such file.
    """
    if not path.is_file():
        raise InvalidSettings(f"no file {path}")
    return _png_tags(path) if path.suffix == ".png" else _video_tags(path)


def _png_tags(path: Path) -> dict[str, str]:
    try:
        with Image.open(path) as image:
            return {str(k).lower(): v for k, v in image.info.items() if isinstance(v, str)}
    except OSError:
        return {}


def _video_tags(path: Path) -> dict[str, str]:
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    command = [ffmpeg, "-v", "error", "-i", str(path), "-f", "ffmetadata", "-"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"^(\w+)=((?:\\.|[^\\\n])*)", shown, re.MULTILINE | re.DOTALL)
    return {name.lower(): re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL) for name, text in found}


def side_by_side(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two clips of the same shape next to each other, with a thin white line between."""
    line = np.ones((*first.shape[:2], 4, 3), first.dtype)
    return np.concatenate([first, line, second], axis=2)


def strip(rows: Mapping[str, np.ndarray], columns: int = 7) -> Image.Image:
    """A picture of ``columns`` evenly spaced frames per clip, one labelled row a clip."""
    margin, label = 4, 16
    clips = list(rows.items())
    _, height, width, _ = clips[0][1].shape
    sheet = Image.new(
        "RGB",
        (columns * (width + margin) + margin, len(clips) * (height + margin + label) + margin),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for row, (name, frames) in enumerate(clips):
        top = row * (height + margin + label) + margin
        draw.text((margin, top), name, fill="black")
        chosen = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
        for column, frame in enumerate(to_bytes(frames[chosen])):
            sheet.paste(Image.fromarray(frame), (margin + column * (width + margin), top + label))
    return sheet
