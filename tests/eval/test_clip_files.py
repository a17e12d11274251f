"""Clips that other programs wrote are read as viewers show them: each frame once, turned, with all bits."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from dit_accel.errors import InvalidSettings
from dit_accel_eval.clip_files import ORIENTATION, read_clip
from dit_accel_eval.frames import write_webm


def ffmpeg(*arguments: object) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True)


def save_grey(path: Path, value: int) -> Path:
    Image.fromarray(np.full((16, 24), value, np.uint16)).save(path)
    return path


def save_deep(path: Path, values: np.ndarray) -> Path:
    """Write a PNG with 16-bit colours, which Pillow cannot write."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(values.astype("<u2").tobytes())
    size = f"{values.shape[1]}x{values.shape[0]}"
    ffmpeg(
        "-f", "rawvideo", "-pix_fmt", "rgb48le", "-s", size, "-i", raw, "-pix_fmt", "rgb48be", path
    )
    return path


def test_images_are_frames_in_the_natural_order_of_their_names(tmp_path: Path) -> None:
    for number in (2, 10, 0, 1):
        Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / f"{number}.png")
    clip = read_clip(tmp_path)
    assert clip.shape == (4, 3, 4, 3)
    assert (clip[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 10]
    assert read_clip(tmp_path / "1.png").shape == (1, 3, 4, 3)
    Image.new("RGB", (5, 3)).save(tmp_path / "3.png")
    with pytest.raises(InvalidSettings, match="images of different sizes"):
        read_clip(tmp_path)


def test_read_clip_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="no images in"):
        read_clip(tmp_path)
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(InvalidSettings, match="cannot read"):
        read_clip(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("not a video")
    with pytest.raises(InvalidSettings, match="is not a clip: give a video"):
        read_clip(tmp_path / "a.txt")


def test_hidden_files_are_no_frames(tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        Image.new("RGB", (4, 3)).save(tmp_path / name)
    (tmp_path / "._0.png").write_bytes(b"what macOS keeps beside a file")
    (tmp_path / ".ipynb_checkpoints.png").mkdir()
    assert len(read_clip(tmp_path)) == 2


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    for value in (20000, 60000):
        clip = read_clip(save_grey(tmp_path / f"{value}.png", value))
        assert clip.shape == (1, 16, 24, 3)
        assert clip == pytest.approx(value / 65535)


def test_sixteen_bit_colours_keep_their_low_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (6, 8, 3))
    clip = read_clip(save_deep(tmp_path / "a.png", values))
    assert clip[0] == pytest.approx(values / 65535, abs=1e-6)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_image_is_turned_as_its_exif_orientation_says(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (24, 16))
    exif = image.getexif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    assert read_clip(tmp_path / f"a.{suffix}").shape == (1, 24, 16, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_refused_and_opaque_ones_are_not(tmp_path: Path, mode: str) -> None:
    opaque = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    opaque.convert(mode).save(tmp_path / "opaque.png")
    assert read_clip(tmp_path / "opaque.png").shape == (1, 8, 8, 3)
    if mode == "P":
        hole = opaque.convert("RGB").convert("P")
        hole.save(tmp_path / "hole.png", transparency=hole.getpixel((0, 0)))
    else:
        opaque.putpixel((2, 3), (0, 255, 0, 254))
        opaque.convert(mode).save(tmp_path / "hole.png")
    with pytest.raises(InvalidSettings, match=r"hole.png has transparent pixels: lay it over"):
        read_clip(tmp_path / "hole.png")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_a_clip_and_no_single_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), (60 * n, 0, 0)) for n in range(4)]
    options = {"save_all": True, "append_images": frames[1:], "duration": [40, 400, 40, 80]}
    frames[0].save(tmp_path / f"a.{suffix}", lossless=True, **options)
    clip = read_clip(tmp_path / f"a.{suffix}")
    assert (clip[:, 0, 0, 0] * 255).round().tolist() == [0, 60, 120, 180]
    if suffix != "gif":
        with pytest.raises(InvalidSettings, match="an animation of 4 frames"):
            read_clip(tmp_path)


@pytest.mark.parametrize("container", ["mp4", "mkv", "webm"])
def test_a_video_of_variable_frame_rate_has_each_frame_once(tmp_path: Path, container: str) -> None:
    source = tmp_path / f"constant.{container}"
    frames = np.linspace(0.1, 0.9, 10).reshape(10, 1, 1, 1) * np.ones((1, 32, 32, 3))
    write_webm(tmp_path / "constant.webm", frames, 10)
    codec = ["-c:v", "libx264"] if container == "mp4" else ["-c:v", "libvpx-vp9"]
    pace = ["-vf", "setpts='if(lt(N,5),N,5+(N-5)*7)/10/TB'", "-fps_mode", "passthrough"]
    varying = tmp_path / f"varying.{container}"
    ffmpeg("-i", tmp_path / "constant.webm", *pace, *codec, varying)
    clip = read_clip(varying)
    assert len(clip) == 10
    assert np.abs(clip.mean(axis=(1, 2, 3)) - frames[:, 0, 0, 0]).max() < 0.03
    assert len(read_clip(tmp_path / "constant.webm")) == 10, source


@pytest.mark.parametrize(
    ("matrix", "red", "blue"), [("smpte170m", 0.299, 0.114), ("bt709", 0.2126, 0.0722)]
)
def test_colours_of_a_video_are_only_rounded(
    tmp_path: Path, matrix: str, red: float, blue: float
) -> None:
    """Each frame has one colour, stored without loss. The formula is that of ITU-R BT.601 and BT.709."""
    random = np.random.default_rng(0)
    planes = [random.integers(low, 256 - low, 24) for low in (16, 64, 64)]  # Y, Cb and Cr by frame
    raw = b"".join(
        bytes([y]) * 1024 + bytes([cb]) * 256 + bytes([cr]) * 256
        for y, cb, cr in zip(*planes, strict=True)
    )
    (tmp_path / "raw").write_bytes(raw)
    source = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", "32x32", "-i", tmp_path / "raw"]
    tags = ["-vf", f"setparams=range=tv:colorspace={matrix}"]
    ffmpeg(*source, *tags, "-c:v", "libx264", "-qp", 0, tmp_path / "a.mp4")
    luma, to_blue, to_red = (planes[0] - 16) / 219, (planes[1] - 128) / 224, (planes[2] - 128) / 224
    r, b = luma + 2 * (1 - red) * to_red, luma + 2 * (1 - blue) * to_blue
    g = (luma - red * r - blue * b) / (1 - red - blue)
    expected = np.stack([r, g, b], -1).clip(0, 1)[:, None, None]
    error = np.abs(read_clip(tmp_path / "a.mp4") - expected).max() * 255
    assert error < 0.6  # rounding alone is 0.5


def test_a_turned_video_is_read_as_players_show_it(tmp_path: Path) -> None:
    write_webm(tmp_path / "a.webm", np.zeros((3, 32, 48, 3), np.float32), 8)
    ffmpeg("-i", tmp_path / "a.webm", "-c:v", "libx264", tmp_path / "a.mp4")
    ffmpeg("-display_rotation", 90, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    assert read_clip(tmp_path / "b.mp4").shape == (3, 48, 32, 3)
