from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_accel.errors import InvalidSettings
from dit_accel_eval.frames import (
    difference,
    keep_frames,
    load_frames,
    read_clip,
    write_webm,
)


def ramp(frames: int = 5, height: int = 32, width: int = 48) -> np.ndarray:
    values = np.linspace(0.1, 0.9, frames * width).reshape(frames, 1, width, 1)
    return np.broadcast_to(values, (frames, height, width, 3)).astype(np.float32)


def test_kept_frames_come_back_as_kept(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).random((2, 50, 70, 3)).astype(np.float32)
    half = frames.astype(np.float16).astype(np.float32)
    turned = np.ascontiguousarray(frames.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
    assert not turned.flags.c_contiguous  # as those of diffusers' pipelines
    for name, clip in (("a", frames), ("h", half), ("t", turned)):
        keep_frames(tmp_path / f"{name}.safetensors", clip)
        assert np.array_equal(load_frames(tmp_path / f"{name}.safetensors"), clip)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in "ah"]
    assert sizes[1] < 0.6 * sizes[0]  # a 16-bit pipeline's frames need no more
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:40])
    assert load_frames(tmp_path / "cut.safetensors") is None
    assert load_frames(tmp_path / "none.safetensors") is None


@pytest.mark.parametrize("size", [(32, 48), (33, 47)], ids=str)
@pytest.mark.parametrize("frames", [1, 5])
def test_webm_is_vp9_and_near(tmp_path: Path, size: tuple[int, int], frames: int) -> None:
    clip = ramp(frames, *size)
    write_webm(tmp_path / "a.webm", clip, 16)
    assert b"V_VP9" in (tmp_path / "a.webm").read_bytes()
    found = read_clip(tmp_path / "a.webm")
    even = tuple(n - n % 2 for n in size)
    assert found.shape == (frames, *even, 3)
    assert np.abs(found - clip[:, : even[0], : even[1]]).mean() < 0.02


def test_pictures_are_frames_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in (2, 10, 0, 1):
        Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / f"{number}.png")
    clip = read_clip(tmp_path)
    assert clip.shape == (4, 3, 4, 3)
    assert (clip[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 10]
    assert read_clip(tmp_path / "1.png").shape == (1, 3, 4, 3)
    Image.new("RGB", (5, 3)).save(tmp_path / "3.png")
    with pytest.raises(InvalidSettings, match="pictures of different sizes"):
        read_clip(tmp_path)


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="no pictures in"):
        read_clip(tmp_path)
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(InvalidSettings, match="cannot read"):
        read_clip(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("no video")
    with pytest.raises(InvalidSettings, match="is no clip: give a video"):
        read_clip(tmp_path / "a.txt")


def test_difference_is_seen_either_way() -> None:
    first = np.full((1, 2, 2, 3), 0.4, np.float32)

    def seen(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.stack(list(difference(one, other)))

    assert seen(first, first).max() == 0
    assert seen(first, first - 0.1) == pytest.approx(0.4)
    assert seen(first - 0.1, first) == pytest.approx(0.4)
    assert seen(first, first + 0.5).max() == 1.0
