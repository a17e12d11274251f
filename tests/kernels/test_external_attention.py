"""Attention of other packages: their signatures, and what is refused before it could spoil an image.

The packages are replaced by float32 attention with the signatures of sageattention 2.2.0, comfy-kitchen 0.2.40,
flash-attn 2.8.3, fa3-fwd 0.0.3 and flash-attn-4 4.0.0b36.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.external_packages import PACKAGES, install

from dit_accel_kernels import (
    EXTERNAL_KERNELS,
    ContractError,
    ExternalAttention,
    find_external_package,
    load_external_attention,
)

CPU = torch.device("cpu")


def load(name: str) -> ExternalAttention:
    return load_external_attention(name, CPU, torch.float32, 64)


@pytest.mark.parametrize("name", EXTERNAL_KERNELS)
def test_a_package_gets_its_own_layout_and_scale(name: str, monkeypatch) -> None:
    install(monkeypatch, name)
    attend = load(name)
    assert attend.error < 1e-5
    query, key, value = torch.randn(3, 1, 2, 37, 16).unbind(0)
    out = attend(query, key, value, scale=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.3)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_the_second_source_of_a_kernel_is_used_if_the_first_is_missing(monkeypatch) -> None:
    install(monkeypatch, "flash-attn-3", source=1)
    assert load("flash-attn-3").error < 1e-5


def wrong_scale(out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return 1.1 * out


def not_finite(out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return torch.where(out > 0.1, torch.nan, out)


def changes_keys(out: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    key -= key.mean(-2, keepdim=True)
    return out


def refuses(*_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel for this architecture\nand a long trace")


def cuts(out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return out[:, :, 1:]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (wrong_scale, "within a relative error of 0.045, got 0.100"),
        (not_finite, "within a relative error of 0.045, got inf"),
        (cuts, "within a relative error of 0.045, got inf"),
        (changes_keys, "a kernel that leaves its inputs as they are"),
        (refuses, "got RuntimeError: no kernel for this architecture$"),
    ],
)
def test_a_faulty_package_fails_its_check(fault: Callable, said: str, monkeypatch) -> None:
    install(monkeypatch, "comfy-kitchen", fault=fault)
    with pytest.raises(ContractError, match=said):
        load("comfy-kitchen")


def test_a_kernel_of_full_precision_has_a_tighter_bound(monkeypatch) -> None:
    def rounded(out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return 1.02 * out

    install(monkeypatch, "comfy-kitchen", fault=rounded)
    assert load("comfy-kitchen").error == pytest.approx(0.02, rel=0.01)
    install(monkeypatch, "flash-attn", fault=rounded)
    with pytest.raises(ContractError, match=r"within a relative error of 0.005, got 0.020"):
        load("flash-attn")


@pytest.mark.parametrize("name", EXTERNAL_KERNELS)
def test_a_missing_package_is_named(name: str, monkeypatch) -> None:
    def not_found(distribution: str) -> str:
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "version", not_found)
    with pytest.raises(
        ContractError, match=rf"the package of {name} must be installed \(.*\), got none"
    ):
        load(name)


def test_versions_are_compared_as_numbers(monkeypatch) -> None:
    install(monkeypatch, "sageattention", version="2.10.0+cu128torch2.9")
    assert find_external_package("sageattention")[0] == "2.10.0+cu128torch2.9"
    install(monkeypatch, "sageattention", version="1.0.6")
    with pytest.raises(
        ContractError, match=r"2.1.1 or newer, got 1.0.6; older ones change the keys"
    ):
        load("sageattention")


def test_a_package_without_the_function_is_refused(monkeypatch) -> None:
    install(monkeypatch, "comfy-kitchen")
    kernel = replace(EXTERNAL_KERNELS["comfy-kitchen"], function="int9_attention")
    monkeypatch.setitem(EXTERNAL_KERNELS, "comfy-kitchen", kernel)
    with pytest.raises(
        ContractError, match=r"AttributeError: module .comfy_kitchen. has no attribute .int9"
    ):
        load("comfy-kitchen")


def test_a_cpu_is_refused_and_an_unknown_name_too(monkeypatch) -> None:
    install(monkeypatch, "comfy-kitchen", devices=("cuda",))
    with pytest.raises(ContractError, match="device of comfy-kitchen must be cuda, got cpu"):
        load("comfy-kitchen")
    with pytest.raises(
        ContractError, match=r"kernel must be one of sageattention, .* got 'xformers'"
    ):
        load("xformers")


def test_every_kernel_has_a_stand_in_here() -> None:
    assert set(PACKAGES) == set(EXTERNAL_KERNELS)
