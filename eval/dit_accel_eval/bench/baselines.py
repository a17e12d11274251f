"""Dense attention that this machine has; what is missing is named with its reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_accel_kernels import dense_attention, quantized_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # on [B, H, S, D]

SDPA = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def sdpa(backend: SDPBackend) -> Attention:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value)

    return attend


def flash_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from flash_attn import flash_attn_func

    out: Tensor = flash_attn_func(*(x.transpose(1, 2) for x in (query, key, value)))
    return out.transpose(1, 2)


def sage_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from sageattention import sageattn

    out: Tensor = sageattn(query, key, value, tensor_layout="HND")
    return out


def full_precision(device: str) -> dict[str, Attention]:
    """Dense attention in the inputs' own dtype, by name."""
    if device == "cpu":
        return {"SDPA": F.scaled_dot_product_attention, "plain matmul": dense_attention}
    found: dict[str, Attention] = {name: sdpa(backend) for name, backend in SDPA.items()}
    if importlib.util.find_spec("flash_attn"):
        found["flash-attn"] = flash_attention
    return found


def quantized(device: str) -> dict[str, Attention]:
    """Dense attention in 8 bits, by name; none on a CPU, where ours is a simulation."""
    if device == "cpu":
        return {}
    found: dict[str, Attention] = {
        "dit_accel int8": lambda q, k, v: quantized_attention(q, k, v, precision="int8")[0],
        "dit_accel int8-fp8": lambda q, k, v: quantized_attention(q, k, v, precision="int8-fp8")[0],
    }
    if importlib.util.find_spec("sageattention"):
        found["sageattention"] = sage_attention
    return found


def missing() -> dict[str, str]:
    """Peers that are not here."""
    peers = ("flash_attn", "sageattention", "flashinfer", "flash_kmeans")
    return {name: "not installed" for name in peers if importlib.util.find_spec(name) is None}
