from pathlib import Path

import numpy as np
import pytest

from dit_accel_eval.clip_files import read_clip
from dit_accel_eval.frames import (
    difference,
    load_frames,
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


def test_difference_has_no_sign_and_is_amplified() -> None:
    first = np.full((1, 2, 2, 3), 0.4, np.float32)

    def amplified(clip: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return np.stack(list(difference(clip, reference)))

    assert amplified(first, first).max() == 0
    assert amplified(first, first - 0.1) == pytest.approx(0.4)
    assert amplified(first - 0.1, first) == pytest.approx(0.4)
    assert amplified(first, first + 0.5).max() == 1.0
