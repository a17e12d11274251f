"""Write frames to mp4 and PNG files with the settings that made them in the metadata, and read both back.

Frames are float arrays ``[T, H, W, 3]`` in [0, 1].
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.errors import InvalidSettings
from dit_accel.extensions import require_extra
from dit_accel.io.atomic import atomic_write
from dit_accel.io.reading import check_regular_file, parse_json

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

METADATA_KEY = "dit_accel"
# What Pillow raises for files that are no images, are cut off, or have chunks that are too large.
UNREADABLE = (OSError, ValueError, SyntaxError)


def require_encoder() -> None:
    """Check that the packages which read and write mp4 files are installed.

    Raises:
        RunFailed: naming the extra that brings them.
    """
    require_extra("an mp4 file", "imageio", "imageio_ffmpeg", extra="video")


def to_bytes(frames: np.ndarray) -> np.ndarray:
    """Return frames as uint8 of the same shape, rounded."""
    import numpy as np

    scaled: np.ndarray = (np.clip(frames, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
    return scaled


def write_clip(path: Path, frames: np.ndarray, fps: int, metadata: Mapping[str, Any]) -> None:
    """Write frames with metadata.

    Args:
        path: ``.png`` writes the first frame, anything else an H.264 video.
        frames: float ``[T, H, W, 3]`` in [0, 1].
        fps: frames per second of a video.
        metadata: values that JSON can hold.

    Raises:
        RunFailed: for a video without imageio-ffmpeg.
    """
    text = json.dumps({METADATA_KEY: metadata})
    if path.suffix != ".png":
        require_encoder()
    with atomic_write(path) as temporary:
        if path.suffix == ".png":
            _write_png(temporary, frames[0], text)
        else:
            _write_mp4(temporary, frames, fps, text)


def _write_png(path: Path, frame: np.ndarray, text: str) -> None:
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text(METADATA_KEY, text)
    Image.fromarray(to_bytes(frame)).save(path, pnginfo=info)


def _write_mp4(path: Path, frames: np.ndarray, fps: int, text: str) -> None:
    import imageio.v2 as imageio

    with imageio.get_writer(
        path,
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
    """Return the metadata that `write_clip` put into a file.

    Raises:
        InvalidSettings: if the file is missing, or holds no metadata of ours.
        RunFailed: for a video without imageio-ffmpeg.
    """
    tags = read_tags(path)
    for name in ("comment", METADATA_KEY):
        try:
            metadata = parse_json(tags[name])[METADATA_KEY]
        except (ValueError, LookupError, TypeError):
            continue
        if isinstance(metadata, dict):
            return metadata
    raise InvalidSettings(
        f"{path} holds no settings of dit-accel: give a file that `dit-accel render` or our ComfyUI nodes wrote"
    )


def read_tags(path: Path) -> dict[str, str]:
    """Return all texts in a file's metadata by lower-case name.

    Raises:
        InvalidSettings: if the file is missing.
        RunFailed: for a video without imageio-ffmpeg.
    """
    check_regular_file(path, "file")
    return _read_png_tags(path) if path.suffix == ".png" else _read_video_tags(path)


def _read_png_tags(path: Path) -> dict[str, str]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return {str(k).lower(): v for k, v in image.info.items() if isinstance(v, str)}
    except UNREADABLE:
        return {}


def _read_video_tags(path: Path) -> dict[str, str]:
    require_encoder()
    import imageio_ffmpeg

    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    command = [ffmpeg, "-v", "error", "-i", str(path), "-f", "ffmetadata", "-"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    tags = re.findall(r"^(\w+)=((?:\\.|[^\\\n])*)", output, re.MULTILINE | re.DOTALL)
    return {name.lower(): re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL) for name, text in tags}


def read_image(path: str) -> Image.Image:
    """Return an image file in RGB.

    Raises:
        InvalidSettings: if the file is missing or is not an image.
    """
    from PIL import Image

    check_regular_file(path, "image")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise InvalidSettings(f"cannot read image {path}: {error}") from None


def join_side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return two clips of the same shape next to each other, with a thin white line between them."""
    import numpy as np

    line = np.ones((*left.shape[:2], 4, 3), left.dtype)
    return np.concatenate([left, line, right], axis=2)


def draw_strip(rows: Mapping[str, np.ndarray], columns: int = 7) -> Image.Image:
    """Return an image with one labelled row for each clip, of ``columns`` evenly spaced frames."""
    import numpy as np
    from PIL import Image, ImageDraw

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
        indices = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
        for column, frame in enumerate(to_bytes(frames[indices])):
            sheet.paste(Image.fromarray(frame), (margin + column * (width + margin), top + label))
    return sheet
