"""Values of a request that no pipeline can take: devices, LoRA files and numbers."""

from __future__ import annotations

import math
from pathlib import Path
from unittest import mock

import pytest

from dit_accel.errors import InvalidSettings
from dit_accel.generation.placement import LoadOptions, Lora, check_device
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate


def test_missing_devices_are_refused() -> None:
    with pytest.raises(InvalidSettings, match="unknown device 'meta'"):
        check_device("meta")
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.device_count", return_value=2),
    ):
        assert check_device("cuda:1") == "cuda"
        with pytest.raises(InvalidSettings, match="choose cuda:0 to cuda:1"):
            check_device("cuda:2")


@pytest.mark.parametrize("name", ["style.bin", "loras/style.pt", "style.ckpt"])
def test_a_pickled_lora_is_refused(tmp_path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x80\x04.")
    for text in (name, str(path.resolve()), f"{name}:0.5"):
        with pytest.raises(InvalidSettings, match="pickled weights are never loaded"):
            LoadOptions(loras=(text,)).check()
        with pytest.raises(InvalidSettings, match="pickled weights are never loaded"):
            Lora.parse(text).load(None, "lora0")


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "1e400"])
def test_a_lora_scale_is_finite(scale: str) -> None:
    with pytest.raises(InvalidSettings, match="must be finite"):
        Lora.parse(f"user/style:{scale}")


def test_a_lora_file_may_have_a_colon_in_its_name(tmp_path) -> None:
    path = tmp_path / "style:v2.safetensors"
    path.touch()
    assert Lora.parse(str(path)) == Lora(str(path), 1.0)
    assert Lora.parse(f"{path}:0.5") == Lora(str(path), 0.5)


@pytest.mark.parametrize("name", ["steps", "fps", "height", "width", "frames"])
@pytest.mark.parametrize("value", [0, -1, 10**9])
def test_counts_have_both_bounds(name: str, value: int) -> None:
    with pytest.raises(InvalidSettings, match=rf"{name} must be at (least|most) \d+, got {value}"):
        validate(RenderSettings("a red circle", **{name: value}))


@pytest.mark.parametrize("name", ["guidance_scale", "true_cfg_scale", "pag_scale", "softness"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scales_are_finite(name: str, value: float) -> None:
    further = {"pag_scale": 1.0} if name == "softness" else {}
    with pytest.raises(InvalidSettings, match=f"{name} must be a finite number"):
        validate(RenderSettings("a red circle", **{**further, name: value}))


@pytest.mark.parametrize("device", ["cpu:1", "cpu:5"])
def test_there_is_one_cpu(device: str) -> None:
    with pytest.raises(InvalidSettings, match="there is one CPU"):
        check_device(device)
