import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dit_accel_eval.metrics.psnr import psnr
from dit_accel_eval.metrics.ssim import ssim


def clips(height: int = 24, width: int = 30, frames: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    first = rng.random((frames, height, width, 3)).astype(np.float32)
    return first, np.clip(first + rng.normal(0, 0.1, first.shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize("size", [(24, 30), (33, 17)], ids=str)
def test_equal_scikit_image(size: tuple[int, int]) -> None:
    first, second = clips(*size)
    pairs = list(zip(first, second, strict=True))
    expected = np.mean([peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs])
    assert psnr(second, first) == pytest.approx(expected, abs=1e-4)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = np.mean(
        [structural_similarity(a, b, data_range=1.0, channel_axis=2, **options) for a, b in pairs]
    )
    assert ssim(second, first) == pytest.approx(expected, abs=2e-3)


def test_identity_and_symmetry() -> None:
    first, second = clips()
    assert math.isinf(psnr(first, first))
    assert ssim(first, first) == pytest.approx(1.0)
    assert psnr(first, second) == pytest.approx(psnr(second, first))
    assert ssim(first, second) == pytest.approx(ssim(second, first), abs=1e-5)


def test_black_against_white_is_zero_decibel() -> None:
    black, white = np.zeros((2, 16, 16, 3), np.uint8), np.full((2, 16, 16, 3), 255, np.uint8)
    assert psnr(white, black) == pytest.approx(0.0, abs=1e-5)
    assert psnr(black, white) == pytest.approx(0.0, abs=1e-5)  # uint8 differences must not wrap


def test_mask_keeps_only_its_pixels() -> None:
    first, second = clips()
    mask = np.zeros(first.shape[:3], bool)
    mask[:2, 4:9, 5:11] = True
    inside = [
        peak_signal_noise_ratio(a[4:9, 5:11], b[4:9, 5:11], data_range=1.0)
        for a, b in zip(first[:2], second[:2], strict=True)
    ]
    assert psnr(second, first, mask=mask) == pytest.approx(np.mean(inside), abs=1e-4)
    assert math.isnan(psnr(second, first, mask=np.zeros_like(mask)))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_clips_are_refused(metric) -> None:
    first, _ = clips()
    with pytest.raises(ValueError, match="one shape"):
        metric(first, first[:2])
    with pytest.raises(ValueError, match="T, H, W, C"):
        metric(first[0], first[0])
    with pytest.raises(ValueError, match="finite"):
        metric(np.full_like(first, np.nan), first)
