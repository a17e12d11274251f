"""Precisions of attention, and their simulation in float32: the oracle of the quantized kernels, and
what a CPU runs when a quantized precision is asked for.

``int8``: queries and keys as int8 with one scale a token, keys smoothed by their mean over tokens;
weights and values in the caller's dtype. ``int8-fp8``: besides, weights and values as e4m3, values
with one scale a channel and smoothed by their mean (SageAttention2, arXiv 2411.10958). ``int4-fp8``:
queries and keys as int4; it has no kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dit_accel_kernels.contracts import ContractError

Precision = Literal["full", "int8", "int8-fp8", "int4-fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LEVELS = {"int8": 127, "int8-fp8": 127, "int4-fp8": 7}
E4M3_MAX = 448.0
FP8_CAPABILITY = (8, 9)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ContractError unless the device can run (or, on CPU, simulate) the precision."""
    if precision not in PRECISIONS:
        raise ContractError("precision", f"one of {', '.join(PRECISIONS)}", precision)
    if device.type != "cuda":
        return
    if precision == "int4-fp8":
        raise ContractError("precision", "one with a kernel (full, int8, int8-fp8)", precision)
    if precision == "int8-fp8" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise ContractError("precision", "full or int8 below compute capability 8.9", precision)


@dataclass(frozen=True)
class Simulated:
    """Attention's inputs after rounding, as numbers again; ``[B, H, S, D]`` unless said.

    Attributes:
        query, key: float32; the key without its mean.
        value: float32 e4m3 multiples without their mean, or the caller's own tensor.
        value_mean: float32 ``[B, H, D]``, to be added to the output; None if values are not rounded.
        lse_shift: float32 ``[B, H, S]``, query times mean key, which scores lack.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    value_mean: Tensor | None
    lse_shift: Tensor


def rounded(x: Tensor, levels: int) -> Tensor:
    """Symmetric rounding to ``2 levels + 1`` values per token (last axis), half away from zero."""
    step = (x.abs().amax(-1, keepdim=True) / levels).clamp(min=1e-12)
    ratio = x / step
    return (ratio.abs() + 0.5).floor().clamp(max=levels) * ratio.sign() * step


def simulate(query: Tensor, key: Tensor, value: Tensor, precision: Precision) -> Simulated:
    """Round the inputs of attention as ``precision`` does."""
    levels = LEVELS[precision]
    mean = key.float().mean(2, keepdim=True)  # [B, H, 1, D]
    shift = (query.float() * mean).sum(-1)
    query, key = rounded(query.float(), levels), rounded(key.float() - mean, levels)
    if precision == "int8":
        return Simulated(query, key, value, None, shift)
    value_mean = value.float().mean(2, keepdim=True)
    centred = value.float() - value_mean
    step = (centred.abs().amax(2, keepdim=True) / E4M3_MAX).clamp(min=1e-12)
    value = (centred / step).to(torch.float8_e4m3fn).float() * step
    return Simulated(query, key, value, value_mean[:, :, 0], shift)


def rounded_weights(weights: Tensor) -> Tensor:
    """Softmax weights rounded to e4m3 relative to each row's largest, as the kernels keep them."""
    top = weights.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / E4M3_MAX
    return (weights / top).to(torch.float8_e4m3fn).float() * top
