"""Write frames to mp4 and PNG files with the settings that made them in the metadata, and read both back.

Frames are float arrays ``[T, H, W, 3]`` in [0, 1].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.errors import InvalidSettings
from dit_accel.io.atomic import atomic_write
from dit_accel.io.images import to_bytes, write_png
from dit_accel.io.reading import check_regular_file, parse_json
from dit_accel.io.video import H264, encode_video, read_video_tags

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

METADATA_KEY = "dit_accel"
# Larger settings are a mistake. PNG readers refuse texts beyond this.
LARGEST_METADATA = 1 << 20


def write_clip(path: Path, frames: np.ndarray, fps: int, metadata: Mapping[str, Any]) -> None:
    """Write frames with metadata, and read the file back before it gets its name.

    Args:
        path: ``.png`` writes the first frame, anything else an H.264 video.
        frames: float ``[T, H, W, 3]`` in [0, 1].
        fps: frames per second of a video.
        metadata: values that JSON can hold.

    Raises:
        RunFailed: if the file cannot be written whole, or for a video without imageio-ffmpeg.
    """
    from PIL import Image

    text = format_metadata(metadata)
    with atomic_write(path) as temporary:
        if path.suffix == ".png":
            write_png(temporary, Image.fromarray(to_bytes(frames[0])), {METADATA_KEY: text})
        else:
            encode_video(temporary, frames, fps, H264, {"comment": text})


def format_metadata(metadata: Mapping[str, Any]) -> str:
    """Return metadata as the text that files hold.

    Raises:
        InvalidSettings: if it is too long.
    """
    text = json.dumps({METADATA_KEY: metadata})
    if len(text) > LARGEST_METADATA:
        raise InvalidSettings(
            f"the settings have {len(text)} bytes, and a file holds {LARGEST_METADATA}: shorten the prompt or the heads"
        )
    return text


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
    is_image = path.suffix.lower() in (".png", ".webp")
    return _read_image_tags(path) if is_image else read_video_tags(path)


def _read_image_tags(path: Path) -> dict[str, str]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            texts = {str(k).lower(): v for k, v in image.info.items() if isinstance(v, str)}
            return texts or _read_animation_tags(image)
    except (OSError, ValueError, SyntaxError):
        return {}


def _read_animation_tags(image: Image.Image) -> dict[str, str]:
    """Return the texts that ComfyUI puts into animations: chunks of a PNG, and EXIF values of a WEBP."""
    pairs = [
        value.partition(":")[::2] for value in image.getexif().values() if isinstance(value, str)
    ]
    # Chunks behind the pixels are known once the last frame is read.
    image.seek(getattr(image, "n_frames", 1) - 1)
    image.load()
    for name, data, *_ in getattr(image, "private_chunks", ()):
        if name == b"comf":
            key, _, text = data.decode("latin-1").partition("\0")
            pairs.append((key, text))
    return {key.lower(): text for key, text in pairs}


def join_side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return two clips of the same shape next to each other, with a thin white line between them."""
    import numpy as np

    line = np.ones((*left.shape[:2], 4, 3), left.dtype)
    return np.concatenate([left, line, right], axis=2)


def write_strip(path: Path, rows: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write a PNG image with one labelled row of frames for each clip, and metadata.

    Raises:
        RunFailed: if the file cannot be written whole.
    """
    text = format_metadata(metadata)
    with atomic_write(path) as temporary:
        write_png(temporary, draw_strip(rows), {METADATA_KEY: text})


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
