"""Run dense attention by kernels of other packages, which are optional and are checked before they count."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from dit_accel_kernels.contracts import ContractError
from dit_accel_kernels.quantized_attention import quantized_attention_reference

if TYPE_CHECKING:
    from torch import Tensor

# Largest relative L1 error on the inputs of the check, by the bits of the products.
LARGEST_ERROR = {8: 0.045, 16: 0.005}
# Lengths of the check: one below and one above the lengths at which kernels change their tiles.
CHECK_TOKENS = (197, 1100)


@dataclass(frozen=True)
class ExternalKernel:
    """Dense attention of another package.

    Attributes:
        sources: pairs of distribution and module that offer the function; the first that is installed counts.
        function: name of the function.
        scale_name: its keyword for the softmax scale.
        bits: 8 if it quantizes queries and keys, else 16.
        heads_first: it takes ``[B, H, S, D]``; False means ``[B, S, H, D]``.
        oldest: the oldest version that is used.
        reason: why older versions are not.
        options: further keywords.
        devices: types of devices that it runs on.
    """

    sources: tuple[tuple[str, str], ...]
    function: str
    scale_name: str
    bits: int
    heads_first: bool
    oldest: tuple[int, ...] = ()
    reason: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    devices: tuple[str, ...] = ("cuda",)


EXTERNAL_KERNELS: dict[str, ExternalKernel] = {
    "sageattention": ExternalKernel(
        sources=(("sageattention", "sageattention"),),
        function="sageattn",
        scale_name="sm_scale",
        bits=8,
        heads_first=True,
        oldest=(2, 1, 1),
        reason="older ones change the keys, and multiply weights and values in float16, which overflows",
        options=(("tensor_layout", "HND"),),
    ),
    "comfy-kitchen": ExternalKernel(
        sources=(("comfy-kitchen", "comfy_kitchen"),),
        function="int8_attention",
        scale_name="scale",
        bits=8,
        heads_first=True,
    ),
    "flash-attn": ExternalKernel(
        sources=(("flash-attn", "flash_attn"),),
        function="flash_attn_func",
        scale_name="softmax_scale",
        bits=16,
        heads_first=False,
        oldest=(2,),
        reason="older ones have another interface",
    ),
    "flash-attn-3": ExternalKernel(
        sources=(("flash-attn-3", "flash_attn_interface"), ("fa3-fwd", "fa3_fwd_interface")),
        function="flash_attn_func",
        scale_name="softmax_scale",
        bits=16,
        heads_first=False,
    ),
    "flash-attn-4": ExternalKernel(
        sources=(("flash-attn-4", "flash_attn.cute"),),
        function="flash_attn_func",
        scale_name="softmax_scale",
        bits=16,
        heads_first=False,
    ),
}
"""Dense attention of other packages, by name. The keywords are those of the versions in docs/precision.md."""


@dataclass(frozen=True)
class ExternalAttention:
    """A kernel of another package that passed its check on a device.

    Attributes:
        name: a name in `EXTERNAL_KERNELS`.
        version: version of the package.
        error: relative L1 error in the check.
        function: the function of the package.
    """

    name: str
    version: str
    error: float
    function: Callable[..., Any]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """Compute dense attention.

        Args:
            query: ``[B, H, Sq, D]``.
            key, value: ``[B, H, Sk, D]``, of the query's dtype and device.
            scale: softmax scale.

        Returns:
            ``[B, H, Sq, D]`` in the query's dtype.
        """
        kernel = EXTERNAL_KERNELS[self.name]
        tensors = [x if kernel.heads_first else x.transpose(1, 2) for x in (query, key, value)]
        out = self.function(*tensors, **{kernel.scale_name: scale}, **dict(kernel.options))
        # Some versions of flash-attn return the log-sum-exp, too.
        attended: Tensor = out[0] if isinstance(out, tuple) else out
        return attended if kernel.heads_first else attended.transpose(1, 2)


def find_external_package(kernel: str) -> tuple[str, str]:
    """Return the version of a kernel's package, and its module. Nothing is imported.

    Args:
        kernel: a name in `EXTERNAL_KERNELS`.

    Raises:
        ContractError: if the kernel is unknown, or its package is not installed or too old.
    """
    if kernel not in EXTERNAL_KERNELS:
        raise ContractError("kernel", f"one of {', '.join(EXTERNAL_KERNELS)}", repr(kernel))
    known = EXTERNAL_KERNELS[kernel]
    for distribution, module in known.sources:
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        numbers = tuple(int(x) for x in re.findall(r"\d+", version)[: len(known.oldest)])
        if numbers < known.oldest:
            oldest = ".".join(map(str, known.oldest))
            raise ContractError(distribution, f"{oldest} or newer", version, known.reason)
        return version, module
    names = " or ".join(distribution for distribution, _ in known.sources)
    raise ContractError(f"the package of {kernel}", f"installed ({names})", "none")


def load_external_attention(
    kernel: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> ExternalAttention:
    """Load a kernel of another package, and compare it with float32 attention on random inputs with biased keys.

    The inputs are views of ``[B, S, H, D]`` tensors, as a pipeline's are, and their softmax scale is not the default.

    Args:
        kernel: a name in `EXTERNAL_KERNELS`.
        device: where attention runs.
        dtype: dtype of its inputs.
        head_dim: channels of a head.

    Raises:
        ContractError: if the package is missing, fails to load, refuses such inputs, changes them, or errs too much.

    Example:
        >>> attend = load_external_attention("comfy-kitchen", query.device, query.dtype, 128)
        >>> out = attend(query, key, value, scale=128**-0.5)
    """
    version, module = find_external_package(kernel)
    known = EXTERNAL_KERNELS[kernel]
    if device.type not in known.devices:
        raise ContractError(f"the device of {kernel}", " or ".join(known.devices), device)
    try:
        function = getattr(importlib.import_module(module), known.function)
        attend = ExternalAttention(kernel, version, float("nan"), function)
        errors = [_measure_error(attend, device, dtype, head_dim, n) for n in CHECK_TOKENS]
    except ContractError:
        raise
    # Whatever the package raises is the finding.
    except Exception as failure:
        got = f"{type(failure).__name__}: {failure}".splitlines()[0][:160]
        expected = f"usable with {dtype} and head_dim {head_dim} on {device}"
        raise ContractError(kernel, expected, got) from failure
    largest = LARGEST_ERROR[known.bits]
    if not max(errors) <= largest:
        raise ContractError(kernel, f"within a relative error of {largest}", f"{max(errors):.3f}")
    return replace(attend, error=max(errors))


def _measure_error(
    attend: ExternalAttention, device: torch.device, dtype: torch.dtype, head_dim: int, tokens: int
) -> float:
    """Return the relative L1 error of a kernel, infinite if its output has another shape or is not finite."""
    inputs = [x.to(device, dtype) for x in _draw_inputs(tokens, head_dim)]
    before = [x.clone() for x in inputs]
    scale = 0.8 * head_dim**-0.5
    out = attend(*(x.transpose(1, 2) for x in inputs), scale=scale)
    if not all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True)):
        expected = "a kernel that leaves its inputs as they are"
        raise ContractError(attend.name, expected, "changed inputs")
    query, key, value = (x.cpu().float().transpose(1, 2) for x in before)
    exact, _ = quantized_attention_reference(query, key, value, precision="full", scale=scale)
    if out.shape != exact.shape or not bool(out.isfinite().all()):
        return float("inf")
    return float((out.cpu().float() - exact).abs().sum() / exact.abs().sum())


def _draw_inputs(tokens: int, head_dim: int) -> list[Tensor]:
    """Return query, key and value ``[1, S, 2, D]`` on the CPU."""
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (1, tokens, 2, head_dim)
    query, key, value = (
        torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) for _ in range(3)
    )
    return [query, key + 4 * (torch.arange(head_dim, device="cpu") % 16 == 0), value]
