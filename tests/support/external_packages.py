"""Stand-ins for packages with dense attention: their signatures around PyTorch's attention."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_accel_kernels import EXTERNAL_KERNELS

Fault = Callable[[Tensor, Tensor], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)


def sageattn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "NHD",
    is_causal: bool = False,
    sm_scale: float | None = None,
    return_lse: bool = False,
) -> Tensor:
    assert tensor_layout == "HND"
    return attend(q, k, v, sm_scale)


def int8_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, attn_mask: Any = None
) -> Tensor:
    return attend(q, k, v, scale)


def flash_attn_2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    tensors = (x.transpose(1, 2) for x in (q, k, v))
    return attend(*tensors, softmax_scale).transpose(1, 2)


def flash_attn_3(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Any = None,
) -> Tensor:
    return flash_attn_2(q, k, v, softmax_scale=softmax_scale)


def flash_attn_4(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qv: Any = None,
    gather_kv_indices: Any = None,
    softmax_scale: float | None = None,
) -> tuple[Tensor, None]:
    return flash_attn_2(q, k, v, softmax_scale=softmax_scale), None


PACKAGES: dict[str, tuple[Callable[..., Any], str]] = {
    "sageattention": (sageattn, "2.2.0"),
    "comfy-kitchen": (int8_attention, "0.2.40"),
    "flash-attn": (flash_attn_2, "2.8.3"),
    "flash-attn-3": (flash_attn_3, "0.0.3"),
    "flash-attn-4": (flash_attn_4, "4.0.0b36"),
}


def install(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    *,
    source: int = 0,
    version: str | None = None,
    fault: Fault | None = None,
    devices: tuple[str, ...] = ("cpu",),
) -> None:
    """Install the stand-in of a package, which runs on a CPU unless told otherwise.

    Args:
        monkeypatch: undoes it.
        name: name of the kernel.
        source: which of the kernel's sources is installed.
        version: another version than usual.
        fault: what becomes of the output, given the keys, too.
        devices: types of devices that it runs on.
    """
    kernel = EXTERNAL_KERNELS[name]
    function, usual = PACKAGES[name]
    distribution, module = kernel.sources[source]

    def faulty(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        return fault(function(q, k, v, **options), k)

    package = ModuleType(module)
    setattr(package, kernel.function, function if fault is None else faulty)
    for parent in module.split(".")[:-1]:
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, module, package)

    def find_version(wanted: str) -> str:
        if wanted != distribution:
            raise importlib.metadata.PackageNotFoundError(wanted)
        return version or usual

    monkeypatch.setattr(importlib.metadata, "version", find_version)
    monkeypatch.setitem(EXTERNAL_KERNELS, name, replace(kernel, devices=devices))
