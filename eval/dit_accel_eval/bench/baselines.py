"""Dense attention implementations that this machine has, and the names of those it lacks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch

from dit_accel_kernels import (
    EXTERNAL_KERNELS,
    ContractError,
    dense_attention,
    find_external_package,
    load_external_attention,
    quantized_attention,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels import ExternalAttention

Attention: TypeAlias = "Callable[[Tensor, Tensor, Tensor], Tensor]"
"""Attention of query, key and value ``[B, H, S, D]``."""

SDPA_BACKENDS = {
    "SDPA flash": "FLASH_ATTENTION",
    "SDPA cuDNN": "CUDNN_ATTENTION",
    "SDPA efficient": "EFFICIENT_ATTENTION",
}
PEERS = ("flashinfer", "flash_kmeans")


def use_sdpa(backend: str) -> Attention:
    """Return PyTorch's attention with one backend, named as in ``torch.nn.attention.SDPBackend``."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    return attend


class CheckedKernel:
    """Attention of another package, which is compared with float32 before its first call in each dtype and head_dim.

    Args:
        name: A name in `dit_accel_kernels.EXTERNAL_KERNELS`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._checked: dict[tuple[torch.dtype, int], ExternalAttention] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attention ``[B, H, S, D]``.

        Raises:
            ContractError: If the package refuses such inputs, or errs too much.
        """
        kind = query.dtype, query.shape[-1]
        if kind not in self._checked:
            self._checked[kind] = load_external_attention(self.name, query.device, *kind)
        return self._checked[kind](query, key, value, scale=query.shape[-1] ** -0.5)


def full_precision_baselines(device: str) -> dict[str, Attention]:
    """Return dense attention in the dtype of the inputs, by name."""
    if device == "cpu":
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return {"SDPA": sdpa, "plain matmul": dense_attention}
    baselines: dict[str, Attention] = {n: use_sdpa(b) for n, b in SDPA_BACKENDS.items()}
    return baselines | external_baselines(16)


def quantized_baselines(device: str) -> dict[str, Attention]:
    """Return dense attention in 8 bits, by name. A CPU has none, because it only simulates our kernels."""
    if device == "cpu":
        return {}
    baselines: dict[str, Attention] = {
        "dit_accel int8": lambda q, k, v: quantized_attention(q, k, v, precision="int8")[0],
        "dit_accel int8-fp8": lambda q, k, v: quantized_attention(q, k, v, precision="int8-fp8")[0],
    }
    return baselines | external_baselines(8)


def external_baselines(bits: int) -> dict[str, Attention]:
    """Return the attention of other packages that are installed and multiply numbers of some bits."""
    missing = missing_peers()
    names = (name for name, kernel in EXTERNAL_KERNELS.items() if kernel.bits == bits)
    return {name: CheckedKernel(name) for name in names if name not in missing}


def missing_peers() -> dict[str, str]:
    """Return the packages that benchmarks would compare with if they were installed, with the reason."""
    missing = {name: "not installed" for name in PEERS if importlib.util.find_spec(name) is None}
    for name in EXTERNAL_KERNELS:
        try:
            find_external_package(name)
        except ContractError as error:
            missing[name] = str(error)
    return missing
