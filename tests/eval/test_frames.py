from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_accel.errors import InvalidSettings
from dit_accel_eval.frames import (
    difference,
    load_frames,
    read_clip,
    save_frames,
    write_webm,
)


def ramp(frames: int = 5, height: int = 32, width: int = 48) -> np.ndarray:
    values = np.linspace(0.1, 0.9, frames * width).reshape(frames, 1, width, 1)
    return np.broadcast_to(values, (frames, height, width, 3)).astype(np.float32)


def test_saved_frames_load_unchanged(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).random((2, 50, 70, 3)).astype(np.float32)
    half = frames.astype(np.float16).astype(np.float32)
    turned = np.ascontiguousarray(frames.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
    # The frames of diffusers' pipelines have such strides.
    assert not turned.flags.c_contiguous
    for name, clip in (("a", frames), ("h", half), ("t", turned)):
        save_frames(tmp_path / f"{name}.safetensors", clip)
        assert np.array_equal(load_frames(tmp_path / f"{name}.safetensors"), clip)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in "ah"]
    assert sizes[1] < 0.6 * sizes[0], "float16 is enough for the frames of a 16-bit pipeline"
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:40])
    assert load_frames(tmp_path / "cut.safetensors") is None
    assert load_frames(tmp_path / "none.safetensors") is None


@pytest.mark.parametrize("size", [(32, 48), (33, 47)], ids=str)
@pytest.mark.parametrize("frames", [1, 5])
def test_webm_is_vp9_and_close_to_the_frames(
    tmp_path: Path, size: tuple[int, int], frames: int
) -> None:
    clip = ramp(frames, *size)
    write_webm(tmp_path / "a.webm", clip, 16)
    assert b"V_VP9" in (tmp_path / "a.webm").read_bytes()
    clip_read = read_clip(tmp_path / "a.webm")
    even = tuple(n - n % 2 for n in size)
    assert clip_read.shape == (frames, *even, 3)
    assert np.abs(clip_read - clip[:, : even[0], : even[1]]).mean() < 0.02


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


def test_difference_has_no_sign_and_is_amplified() -> None:
    first = np.full((1, 2, 2, 3), 0.4, np.float32)

    def amplified(clip: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return np.stack(list(difference(clip, reference)))

    assert amplified(first, first).max() == 0
    assert amplified(first, first - 0.1) == pytest.approx(0.4)
    assert amplified(first - 0.1, first) == pytest.approx(0.4)
    assert amplified(first, first + 0.5).max() == 1.0
