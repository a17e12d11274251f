"""Metrics equal independent implementations, and refuse invalid clips."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from support.planted_backbone import seeded, torchvision_state
from support.tiny_clip import save_tiny_clip
from torchmetrics.functional.image.lpips import _NoTrainLpips

from dit_accel.errors import InvalidSettings
from dit_accel_assets.world import render, sample_scenes
from dit_accel_eval.metrics.caption import caption_correct
from dit_accel_eval.metrics.clip_pairs import NoBackbone, paired
from dit_accel_eval.metrics.clip_score import clip_score
from dit_accel_eval.metrics.drift import drift
from dit_accel_eval.metrics.flicker import flicker, flicker_difference
from dit_accel_eval.metrics.lpips import (
    LEAST_SIZES,
    load_lpips,
    lpips,
    lpips_or_reason,
    net_of,
)
from dit_accel_eval.metrics.psnr import psnr
from dit_accel_eval.metrics.ssim import ssim
from dit_accel_eval.quality_metrics import similarity_metrics


def clips(height: int = 24, width: int = 30, frames: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    first = rng.random((frames, height, width, 3)).astype(np.float32)
    return first, np.clip(first + rng.normal(0, 0.1, first.shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize("size", [(24, 30), (33, 17)], ids=str)
def test_psnr_and_ssim_equal_scikit_image(size: tuple[int, int]) -> None:
    first, second = clips(*size)
    pairs = list(zip(first, second, strict=True))
    expected = np.mean([peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs])
    assert psnr(second, first) == pytest.approx(expected, abs=1e-4)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = np.mean(
        [structural_similarity(a, b, data_range=1.0, channel_axis=2, **options) for a, b in pairs]
    )
    assert ssim(second, first) == pytest.approx(expected, abs=2e-3)


def test_psnr_and_ssim_are_symmetric() -> None:
    first, second = clips()
    assert math.isinf(psnr(first, first))
    assert ssim(first, first) == pytest.approx(1.0)
    assert psnr(first, second) == pytest.approx(psnr(second, first))
    assert ssim(first, second) == pytest.approx(ssim(second, first), abs=1e-5)


def test_an_equal_frame_counts_as_100_decibels() -> None:
    first, second = clips()
    both = psnr(second[1:], first[1:])
    first[0] = second[0] = 0.0
    assert psnr(second, first) == pytest.approx((100 + 2 * both) / 3)


@pytest.mark.parametrize("size", [(4, 4), (10, 40), (11, 30), (40, 30)], ids=str)
def test_metrics_below_their_least_size_are_none_with_the_reason(tmp_path, size) -> None:
    first, second = clips(*size)
    save_file(torchvision_state(seeded("alex")), tmp_path / "b.safetensors")
    figures = similarity_metrics(first, second, tmp_path / "b.safetensors")
    assert 10 < figures["psnr"] < 30
    assert (figures["ssim"] is None) == (min(size) < 11)
    assert ("ssim_reason" in figures) == (min(size) < 11)
    assert figures["lpips"] is None
    least = f"needs at least 31 x 31 pixels, and the frames have {size[0]} x {size[1]}"
    assert figures["lpips_reason"] == f"LPIPS (alex) {least}"


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_least_size_of_lpips_is_the_least_that_its_network_takes(tmp_path, net: str) -> None:
    path = tmp_path / "b.safetensors"
    save_file(torchvision_state(seeded(net)), path)
    first, second = clips(LEAST_SIZES[net], LEAST_SIZES[net], frames=1)
    assert lpips(first, second, backbone=path) > 0
    with pytest.raises(RuntimeError, match="Output size is too small"):
        load_lpips(path)(*[torch.zeros(1, 3, LEAST_SIZES[net] - 1, 64)] * 2)


def test_black_against_white_is_zero_decibels() -> None:
    black, white = np.zeros((2, 16, 16, 3), np.uint8), np.full((2, 16, 16, 3), 255, np.uint8)
    assert psnr(white, black) == pytest.approx(0.0, abs=1e-5)
    # A difference of uint8 values would wrap.
    assert psnr(black, white) == pytest.approx(0.0, abs=1e-5)


def test_psnr_compares_only_the_pixels_of_its_mask() -> None:
    first, second = clips()
    mask = np.zeros(first.shape[:3], bool)
    mask[:2, 4:9, 5:11] = True
    inside = [
        peak_signal_noise_ratio(a[4:9, 5:11], b[4:9, 5:11], data_range=1.0)
        for a, b in zip(first[:2], second[:2], strict=True)
    ]
    assert psnr(second, first, mask=mask) == pytest.approx(np.mean(inside), abs=1e-4)
    assert math.isnan(psnr(second, first, mask=np.zeros_like(mask)))


@pytest.mark.parametrize("metric", [psnr, ssim, flicker_difference, drift])
def test_invalid_clips_are_refused(metric) -> None:
    first, _ = clips()
    with pytest.raises(ValueError, match="same shape"):
        metric(first, first[:2])
    with pytest.raises(ValueError, match="T, H, W, C"):
        metric(first[0], first[0])
    with pytest.raises(ValueError, match="at least one frame"):
        metric(first[:0], first[:0])
    with pytest.raises(ValueError, match="finite"):
        metric(np.full_like(first, np.nan), first)


@pytest.mark.parametrize("net", ["alex", "vgg"])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_lpips_equals_torchmetrics_on_a_random_backbone(tmp_path, net, ending) -> None:
    model = seeded(net)
    path = tmp_path / f"backbone{ending}"
    state = torchvision_state(model)
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    other = _NoTrainLpips(net=net, pnet_rand=True)
    other.net.load_state_dict(model.net.state_dict())
    first, second = clips(65, 71)
    expected = other.eval()(*paired(first, second), normalize=True).mean()
    assert lpips(first, second, backbone=path) == pytest.approx(float(expected), abs=1e-5)
    assert lpips(first, first, backbone=path) == 0.0
    assert net_of(path) == net
    assert lpips(first, second, backbone=path) > 0.0


def test_lpips_does_not_depend_on_its_batches(tmp_path, monkeypatch) -> None:
    save_file(torchvision_state(seeded("alex")), tmp_path / "b.safetensors")
    first, second = clips(64, 64, frames=5)
    whole = lpips(first, second, backbone=tmp_path / "b.safetensors")
    monkeypatch.setattr("dit_accel_eval.metrics.lpips.FRAMES", 2)
    assert lpips(first, second, backbone=tmp_path / "b.safetensors") == pytest.approx(whole)


def test_lpips_without_a_backbone_says_where_to_put_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    first, second = clips(64, 64)
    with pytest.raises(NoBackbone, match=r"put alexnet-owt-7be5be79\.pth into .*--lpips-backbone"):
        lpips(first, second)
    (tmp_path / "checkpoints").mkdir()
    cached = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    torch.save(torchvision_state(seeded("alex")), cached)
    assert lpips(first, second) > 0.0
    wrong = tmp_path / "wrong.safetensors"
    save_file({"features.0.weight": torch.zeros(1)}, wrong)
    with pytest.raises(NoBackbone, match="holds neither torchvision's alex nor vgg"):
        lpips(first, second, backbone=wrong)
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(NoBackbone, match=r"tensor\.pth holds neither"):
        lpips(first, second, backbone=tmp_path / "tensor.pth")
    with pytest.raises(NoBackbone, match="holds neither"):
        lpips(first, second, backbone=tmp_path / "none.safetensors")


def test_a_given_backbone_must_work(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    first, second = clips(64, 64)
    value, reason = lpips_or_reason(first, second)
    assert value is None
    hint = "give --download once to `dit-accel compare`, `eval` or `tune`"
    assert f"LPIPS needs torchvision's alex weights: {hint}" in reason
    wrong = tmp_path / "wrong.safetensors"
    save_file({"features.0.weight": torch.zeros(1)}, wrong)
    with pytest.raises(InvalidSettings, match="holds neither torchvision's alex nor vgg"):
        lpips_or_reason(first, second, backbone=wrong)
    save_file(torchvision_state(seeded("alex")), tmp_path / "right.safetensors")
    value, reason = lpips_or_reason(first, second, backbone=tmp_path / "right.safetensors")
    assert value > 0.0
    assert reason is None


def test_flicker_is_the_mean_change_between_frames() -> None:
    steady, _ = clips(frames=1)
    steady = np.repeat(steady, 4, 0)
    assert flicker(steady) == flicker(steady[:1]) == 0.0
    ramp = np.linspace(0.0, 0.3, 4, dtype=np.float32)[:, None, None, None] + np.zeros((1, 8, 8, 3))
    assert flicker(ramp) == pytest.approx(0.1)
    assert flicker_difference(ramp, ramp[::-1].copy()) == pytest.approx(0.0)
    assert flicker_difference(ramp, np.zeros_like(ramp)) == pytest.approx(0.1)
    blink = np.zeros((2, 8, 8, 3), np.uint8)
    # A difference of uint8 values would wrap to 1.
    blink[0] = 255
    assert flicker(blink) == pytest.approx(1.0)


def test_drift_is_the_slope_of_the_error() -> None:
    reference = np.zeros((5, 8, 8, 3), np.float32)
    growing = reference + np.linspace(0.1, 0.5, 5, dtype=np.float32)[:, None, None, None]
    assert drift(growing, reference) == pytest.approx(0.4, abs=1e-6)
    assert drift(growing[::-1].copy(), reference) == pytest.approx(-0.4, abs=1e-6)
    assert drift(reference + 0.2, reference) == pytest.approx(0.0, abs=1e-6)
    assert drift(growing[:1], reference[:1]) == 0.0


@pytest.mark.parametrize("metric", [psnr, ssim, flicker_difference, drift])
@pytest.mark.parametrize("kind", [np.float16, np.float64, np.uint8], ids=lambda k: k.__name__)
def test_metrics_accept_every_dtype(metric, kind) -> None:
    first, second = clips(17, 23)
    if kind == np.uint8:
        pair = [(c * 255).round().astype(np.uint8) for c in (first, second)]
        expected = metric(*(c.astype(np.float32) / 255 for c in pair))
    else:
        pair = [c.astype(kind) for c in (first, second)]
        expected = metric(*(c.astype(np.float32) for c in pair))
    assert metric(*pair) == pytest.approx(expected, rel=1e-5)


def test_clip_score_equals_the_cosine_similarity(tmp_path) -> None:
    model, processor = save_tiny_clip(tmp_path)
    first, _ = clips(32, 32, frames=3)
    images = torch.from_numpy((first * 255).round()).to(torch.uint8).permute(0, 3, 1, 2)
    inputs = processor(text=["a fox"], images=list(images), return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model(**{k: v for k, v in inputs.items() if k != "token_type_ids"})
    cosine = (out.image_embeds * out.text_embeds).sum(-1).clamp(min=0)
    assert clip_score(first, "a fox", folder=tmp_path) == pytest.approx(
        100 * float(cosine.mean()), abs=1e-2
    )
    with pytest.raises(NoBackbone, match="does not hold a CLIP model"):
        clip_score(first, "a fox", folder=tmp_path / "none")


def test_caption_is_correct_or_not() -> None:
    scene = next(sample_scenes(np.random.default_rng(3), [1], held_out=False))
    clip = render(scene, 128, 128, 17)
    assert caption_correct(clip, scene)[0]
    assert caption_correct((clip * 255).astype(np.uint8), scene)[0]
    correct, seen = caption_correct(np.zeros_like(clip), scene)
    assert not correct
    assert "nothing" in seen
