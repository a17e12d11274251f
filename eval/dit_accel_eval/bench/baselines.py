"""Dense attention implementations that this machine has, and the names of those it lacks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch

from dit_accel_kernels import dense_attention, quantized_attention

if TYPE_CHECKING:
    from torch import Tensor

Attention: TypeAlias = "Callable[[Tensor, Tensor, Tensor], Tensor]"
"""Attention of query, key and value ``[B, H, S, D]``."""

SDPA_BACKENDS = {
    "SDPA flash": "FLASH_ATTENTION",
    "SDPA cuDNN": "CUDNN_ATTENTION",
    "SDPA efficient": "EFFICIENT_ATTENTION",
}
PEERS = ("flash_attn", "sageattention", "flashinfer", "flash_kmeans")


def use_sdpa(backend: str) -> Attention:
    """Return PyTorch's attention with one backend, named as in ``torch.nn.attention.SDPBackend``."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    return attend


def flash_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention ``[B, H, S, D]`` of the package flash-attn."""
    from flash_attn import flash_attn_func

    out: Tensor = flash_attn_func(*(x.transpose(1, 2) for x in (query, key, value)))
    return out.transpose(1, 2)


def sage_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention ``[B, H, S, D]`` of the package sageattention."""
    from sageattention import sageattn

    out: Tensor = sageattn(query, key, value, tensor_layout="HND")
    return out


def full_precision_baselines(device: str) -> dict[str, Attention]:
    """Return dense attention in the dtype of the inputs, by name."""
    if device == "cpu":
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return {"SDPA": sdpa, "plain matmul": dense_attention}
    baselines: dict[str, Attention] = {n: use_sdpa(b) for n, b in SDPA_BACKENDS.items()}
    if importlib.util.find_spec("flash_attn"):
        baselines["flash-attn"] = flash_attention
    return baselines


def quantized_baselines(device: str) -> dict[str, Attention]:
    """Return dense attention in 8 bits, by name. A CPU has none, because it only simulates our kernels."""
    if device == "cpu":
        return {}
    baselines: dict[str, Attention] = {
        "dit_accel int8": lambda q, k, v: quantized_attention(q, k, v, precision="int8")[0],
        "dit_accel int8-fp8": lambda q, k, v: quantized_attention(q, k, v, precision="int8-fp8")[0],
    }
    if importlib.util.find_spec("sageattention"):
        baselines["sageattention"] = sage_attention
    return baselines


def missing_peers() -> dict[str, str]:
    """Return the packages that benchmarks would compare with if they were installed, with the reason."""
    return {name: "not installed" for name in PEERS if importlib.util.find_spec(name) is None}
