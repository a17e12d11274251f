"""ST-LPIPS and ColorVideoVDP without their packages, and the download of LPIPS's weights."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel_eval.metrics import cvvdp as vdp
from dit_accel_eval.metrics import st_lpips as tolerant
from dit_accel_eval.metrics.clip_pairs import NoBackbone, TooSmall
from dit_accel_eval.metrics.cvvdp import cvvdp, cvvdp_or_reason
from dit_accel_eval.metrics.lpips import CACHED, download_backbone, lpips_band
from dit_accel_eval.metrics.st_lpips import LEAST_SIZE, MOST_FRAMES, st_lpips, st_lpips_or_reason
from dit_accel_eval.quality_metrics import installed_metrics, similarity_metrics
from dit_accel_eval.tune.targets import Target, check_targets

BINOMIAL = np.outer([1, 2, 1], [1, 2, 1]) / 16
SHAPES = {"slice1.0": (64, 3, 11), "slice2.5": (192, 64, 5), "slice3.9": (384, 192, 3)}
SHAPES |= {"slice4.11": (256, 384, 3), "slice5.13": (256, 256, 3)}
BLURS = {"slice1.1": 64, "slice2.4": 64, "slice3.8": 192}
SHIFT, SCALE = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])


def state(random: bool) -> dict[str, torch.Tensor]:
    """Return weights of the right shapes: random ones, or those that only look at red in the first layer."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {
        "scaling_layer.shift": torch.tensor(SHIFT, dtype=torch.float32).view(1, 3, 1, 1),
        "scaling_layer.scale": torch.tensor(SCALE, dtype=torch.float32).view(1, 3, 1, 1),
    }
    for layer, (name, (out, channels, size)) in enumerate(SHAPES.items()):
        shape = (out, channels, size, size)
        weight = torch.randn(shape, generator=generator) / (channels * size)
        weights[f"net.{name}.weight"] = weight if random else torch.zeros(shape)
        weights[f"net.{name}.bias"] = torch.zeros(out)
        linear = torch.rand((1, out, 1, 1), generator=generator)
        weights[f"lin{layer}.model.1.weight"] = linear if random else linear * 0
    for name, channels in BLURS.items():
        blur = torch.tensor(BINOMIAL, dtype=torch.float32)
        weights[f"net.{name}.filt"] = blur.expand(channels, 1, 3, 3).contiguous()
    if not random:
        weights["net.slice1.0.weight"][0, 0, 5, 5] = 1
        weights["net.slice1.0.bias"][:2] = torch.tensor([2.5, 1.0])  # no relu acts
        weights["lin0.model.1.weight"][:] = 1
    return weights


def plant(folder: Path, monkeypatch, *, random: bool) -> None:
    """Put a package with weights on the path of modules."""
    path = folder / "stlpips_pytorch" / tolerant.WEIGHTS
    path.parent.mkdir(parents=True)
    torch.save(state(random), path)
    (folder / "stlpips_pytorch/__init__.py").write_text("raise ImportError('not for import')")
    monkeypatch.syspath_prepend(str(folder))
    tolerant.load_weights.cache_clear()


@pytest.fixture(autouse=True)
def forget():
    yield
    tolerant.load_weights.cache_clear()
    vdp.load_cvvdp.cache_clear()


def clips(frames: int = 2, height: int = 24, width: int = 29) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    first = rng.random((frames, height, width, 3)).astype(np.float32)
    return first, np.clip(first + rng.normal(0, 0.1, first.shape), 0, 1).astype(np.float32)


def red_features(frame: np.ndarray) -> np.ndarray:
    """Return the two channels that `state` makes of a frame ``[H, W, 3]``, blurred, with length 1."""
    red = (2 * frame[..., 0] - 1 - SHIFT[0]) / SCALE[0] + 2.5
    cropped = np.pad(red[3:-3, 3:-3], 2, mode="reflect")
    rows, columns = (size // 2 + 1 for size in (red.shape[0] - 5, red.shape[1] - 5))
    blurred = np.array(
        [
            [
                (BINOMIAL * cropped[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]).sum()
                for j in range(columns)
            ]
            for i in range(rows)
        ]
    )
    both = np.stack([blurred, np.ones_like(blurred)])
    return both / np.linalg.norm(both, axis=0)


def test_st_lpips_of_planted_weights_equals_its_definition(tmp_path, monkeypatch) -> None:
    plant(tmp_path, monkeypatch, random=False)
    first, second = clips()
    expected = np.mean(
        [
            ((red_features(a) - red_features(b)) ** 2).sum(0).mean()
            for a, b in zip(first, second, strict=True)
        ]
    )
    assert expected > 1e-4
    assert st_lpips(second, first) == pytest.approx(expected, rel=1e-3)


def test_st_lpips_is_symmetric_and_takes_evenly_spaced_frames(tmp_path, monkeypatch) -> None:
    plant(tmp_path, monkeypatch, random=True)
    first, second = clips(MOST_FRAMES + 1)
    assert st_lpips(first, first) == 0
    distance = st_lpips(second, first)
    assert distance > 0
    assert distance == pytest.approx(st_lpips(first, second))
    monkeypatch.setattr(tolerant, "PIXELS", 1)
    assert distance == pytest.approx(st_lpips(second, first), rel=1e-4), "one frame at a time"
    dropped = second.copy()
    dropped[MOST_FRAMES // 2] = 0  # the frame between two that are compared
    assert st_lpips(dropped, first) == pytest.approx(distance, rel=1e-4)


def test_st_lpips_refuses_small_frames_as_its_network_does(tmp_path, monkeypatch) -> None:
    plant(tmp_path, monkeypatch, random=True)
    first, second = clips(1, LEAST_SIZE, LEAST_SIZE)
    assert st_lpips(first, second) > 0
    small = clips(1, LEAST_SIZE - 1, 40)
    with pytest.raises(TooSmall, match="ST-LPIPS needs at least 21 x 21 pixels"):
        st_lpips(*small)
    with pytest.raises(RuntimeError, match="Padding size"):
        tolerant.features(torch.zeros(1, 3, LEAST_SIZE - 1, 40), tolerant.load_weights())
    assert "st_lpips_reason" in similarity_metrics(*small)


def test_metrics_without_their_packages_say_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    first, second = clips(1)
    for measure in (st_lpips_or_reason, cvvdp_or_reason):
        value, reason = measure(first, second)
        assert value is None
        assert "pip install 'dit_accel[metrics]'" in reason
    assert installed_metrics() == {}
    for target in ("st_lpips<=0.1", "cvvdp>=9"):
        with pytest.raises(InvalidSettings, match=r"dit_accel\[metrics\]"):
            check_targets([Target.parse(target)], ["a"], None)


PACKAGE = """
import os, sys
sys.path.append(os.path.dirname(__file__))
class cvvdp:
    def __init__(self, display_name, quiet, device):
        assert quiet
    def predict(self, test, reference, dim_order, frames_per_second):
        assert dim_order == "FCHW" and test.shape[1] == 3
        return 10 - (test - reference).abs().mean(), None
"""


def test_colorvideovdp_leaves_the_path_of_modules_alone(tmp_path, monkeypatch) -> None:
    (tmp_path / "pycvvdp").mkdir()
    (tmp_path / "pycvvdp/__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pycvvdp", raising=False)
    vdp.load_cvvdp.cache_clear()
    before = list(sys.path)
    first, second = clips()
    assert cvvdp(second, first) == pytest.approx(10 - np.abs(first - second).mean(), abs=1e-4)
    assert cvvdp(first, first) == 10
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "pycvvdp")


def test_a_colorvideovdp_that_cannot_be_imported_is_a_reason(tmp_path, monkeypatch) -> None:
    (tmp_path / "pycvvdp").mkdir()
    (tmp_path / "pycvvdp/__init__.py").write_text("import no_such_reader")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pycvvdp", raising=False)
    vdp.load_cvvdp.cache_clear()
    with pytest.raises(NoBackbone, match="no_such_reader"):
        cvvdp(*clips())


def test_lpips_downloads_its_weights_once_and_says_what_failed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    calls = []

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        calls.append((url, hash_prefix))
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert download_backbone() == download_backbone() == tmp_path / "checkpoints" / CACHED
    ((url, prefix),) = calls
    assert url.endswith(CACHED)
    assert prefix == "7be5be79"

    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    (tmp_path / "checkpoints" / CACHED).unlink()
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(RunFailed, match=r"no network.*leave --download out"):
        download_backbone()


@pytest.mark.parametrize(
    ("distance", "words"),
    [(0.0, "same trajectory"), (0.3, "scene preserved"), (0.55, "diverged"), (0.9, "diverged")],
)
def test_distances_have_bands(distance: float, words: str) -> None:
    assert lpips_band(distance) == words
