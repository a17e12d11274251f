"""Files of clips are whole, have the colours that players show, and keep their settings."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.io.images import read_image
from dit_accel.io.media import LARGEST_METADATA, read_metadata, read_tags, write_clip, write_strip
from dit_accel.io.video import H264, VP9, count_frames, require_encoder
from dit_accel_eval.frames import write_webm

NOISE = np.random.default_rng(0).random((6, 64, 64, 3)).astype(np.float32)


def write(path: Path, frames: np.ndarray = NOISE) -> None:
    if path.suffix == ".webm":
        write_webm(path, frames, 16)
    elif path.name.endswith("strip.png"):
        write_strip(path, {"dense": frames, "svg2": frames}, {})
    else:
        write_clip(path, frames, 16, {"a": 1})


KINDS = pytest.mark.parametrize("name", ["a.mp4", "a.png", "a-strip.png", "a.webm"])


@pytest.fixture
def small_files() -> Iterator[None]:
    """Limit the size of files that this process and its encoders can write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fake_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script in the place of ffmpeg; ``$REAL`` is the real one."""
    path = folder / "ffmpeg"
    path.write_text(f'#!/bin/sh\nREAL="{imageio_ffmpeg.get_ffmpeg_exe()}"\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))


@KINDS
@pytest.mark.usefixtures("small_files")
def test_a_file_that_cannot_be_written_whole_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFailed, match=f"cannot write .*{name}: .*(too large|limit exceeded)"):
        write(tmp_path / name)
    assert not list(tmp_path.iterdir())


@KINDS
@pytest.mark.usefixtures("small_files")
def test_a_failed_write_keeps_the_file_that_was_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("before")
    with pytest.raises(RunFailed):
        write(tmp_path / name)
    assert (tmp_path / name).read_text() == "before"


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("cat > /dev/null; echo 'no room' >&2; exit 1", "ffmpeg failed: no room"),
        ("exit 1", "ffmpeg failed: exit code 1"),
        ("cat > /dev/null; exit 228", "ffmpeg failed: No space left on device"),
        ("cat > /dev/null; exit 0", "the file does not decode"),
        ('head -c 24576 | "$REAL" "$@"', "the file holds 2 of 6 frames"),
    ],
    ids=["at-the-end", "at-once", "full-disk", "without-a-file", "frames-lost"],
)
def test_an_encoder_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str, message: str
) -> None:
    # Reading is left to the real ffmpeg.
    reads = 'case "$*" in *progress*) exec "$REAL" "$@";; esac'
    fake_ffmpeg(tmp_path, monkeypatch, f"{reads}\n{script}")
    (tmp_path / "out").mkdir()
    with pytest.raises(RunFailed, match=f"cannot write .*{name}: {message}"):
        write(tmp_path / "out" / name)
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_encoder_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for codec in (H264, VP9):
        require_encoder(codec)
    fake_ffmpeg(tmp_path, monkeypatch, "echo \"Unknown encoder 'libx264'\" >&2; exit 8")
    with pytest.raises(RunFailed, match=r"cannot encode with libx264 \(Unknown encoder"):
        require_encoder(H264)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    with pytest.raises(RunFailed, match=r"cannot start ffmpeg at .*none: No such file"):
        require_encoder(H264)


def decode(path: Path, matrix: str) -> np.ndarray:
    """Return the middle pixel of a video's first frame, decoded with a matrix in place of the file's own tag."""
    scale = f"scale=in_color_matrix={matrix}:in_range=tv:flags=accurate_rnd+full_chroma_int"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-frames:v", "1"]
    command += ["-vf", f"{scale},crop=1:1,format=rgb24", "-f", "rawvideo", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).astype(int)


@pytest.mark.parametrize(
    ("height", "width", "tag"),
    [(64, 64, "smpte170m"), (480, 832, "smpte170m"), (720, 1280, "bt709"), (1280, 720, "bt709")],
)
@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_colours_come_back_as_players_decode_them(
    tmp_path: Path, height: int, width: int, tag: str, ending: str
) -> None:
    green = np.array([0, 178, 0])
    frames = np.broadcast_to(green / 255, (1, height, width, 3)).astype(np.float32)
    write(tmp_path / f"a{ending}", frames)
    assert np.abs(decode(tmp_path / f"a{ending}", tag) - green).max() <= 2
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(tmp_path / f"a{ending}")]
    described = subprocess.run(command, capture_output=True, text=True).stderr
    tags = "bt709" if tag == "bt709" else "smpte170m/bt709/bt709"
    assert f"yuv420p(tv, {tags}, progressive)" in described


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
@pytest.mark.parametrize("length", [0, 300_000], ids=["short", "long"])
def test_settings_come_back(tmp_path: Path, name: str, length: int) -> None:
    settings = {"prompt": 'a "b"; c = d # e \\ f, é\n' + "x" * length, "n": [1, None]}
    write_clip(tmp_path / name, NOISE, 16, settings)
    assert read_metadata(tmp_path / name) == settings
    with pytest.raises(InvalidSettings, match="shorten the prompt"):
        write_clip(tmp_path / name, NOISE, 16, {"prompt": "x" * LARGEST_METADATA})


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_texts_of_comfyuis_animations(tmp_path: Path, suffix: str, count: int) -> None:
    """ComfyUI keeps them in chunks behind the pixels of a PNG, and in EXIF values of a WEBP."""
    first, *others = [Image.new("RGB", (8, 8), (90 * i, 0, 0)) for i in range(count)]
    text, chunks, exif = '{"a": "b:c"}', PngInfo(), first.getexif()
    chunks.add(b"comf", b"prompt\0" + text.encode(), after_idat=True)
    exif[0x0110] = f"prompt:{text}"
    path = tmp_path / f"a.{suffix}"
    extra = {"pnginfo": chunks} if suffix == "png" else {"exif": exif}
    first.save(path, save_all=True, append_images=others, **extra)
    assert read_tags(path) == {"prompt": text}


def test_odd_sizes_lose_a_row_and_a_column_and_are_not_scaled(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_clip(path, NOISE[:, :33, :47], 16, {})
    assert count_frames(path) == len(NOISE)
    reader: Any = imageio_ffmpeg.read_frames(str(path))
    assert next(reader)["size"] == (46, 32)
    reader.close()


def test_names_with_signs_that_ffmpeg_reads_are_files(tmp_path: Path) -> None:
    path = tmp_path / "a:b %d;c.mp4"
    write_clip(path, NOISE, 16, {"a": 1})
    assert read_metadata(path) == {"a": 1}


def save_turned(path: Path) -> np.ndarray:
    """Save an image that its EXIF data turns by a quarter, and return what a viewer shows."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    return np.rot90(pixels, -1)


def save_deep(path: Path) -> np.ndarray:
    """Save a turned image with 16 bits."""
    exif = Image.Exif()
    exif[0x0112] = 3
    values = np.array([[0, 20000, 60000, 65535]], np.uint16)
    Image.fromarray(values).save(path, exif=exif)
    return np.repeat(np.array([[[255], [233], [78], [0]]], np.uint8), 3, axis=2)


def save_opaque(path: Path) -> np.ndarray:
    """Save an image whose alpha is full everywhere."""
    pixels = np.array([[[255, 0, 0, 255], [0, 9, 0, 255]]], np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels[..., :3]


def save_palette(path: Path) -> np.ndarray:
    """Save an image with a palette."""
    image = Image.new("P", (1, 1))
    image.putpalette([255, 0, 0])
    image.save(path)
    return np.array([[[255, 0, 0]]], np.uint8)


@pytest.mark.parametrize("save", [save_turned, save_deep, save_opaque, save_palette])
def test_images_are_read_as_viewers_show_them(
    tmp_path: Path, save: Callable[[Path], np.ndarray]
) -> None:
    shown = save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), shown)


def test_images_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(InvalidSettings, match="values of unknown range: save it with 8 or 16"):
        read_image(tmp_path / "float.tiff")
    first, second = (Image.new("RGB", (2, 2), color) for color in ("red", "blue"))
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    with pytest.raises(InvalidSettings, match="is an animation of 2 frames"):
        read_image(tmp_path / "two.gif")
    Image.new("P", (1, 1)).save(tmp_path / "palette.png", transparency=0)
    Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "half.png")
    for name in ("palette.png", "half.png"):
        with pytest.raises(InvalidSettings, match="has transparent pixels: lay it over"):
            read_image(tmp_path / name)
    (tmp_path / "text.png").write_text("x")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("none.png", "text.png", "pipe.png", "."):
        with pytest.raises(InvalidSettings, match="cannot read image"):
            read_image(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_writing_leaves_no_open_files(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("a.mp4", "a.png", "a.webm"):
        write(tmp_path / name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
