"""Check precisions of attention, and simulate quantized ones in float32.

The simulation is the oracle of the quantized kernels. A CPU runs it if a quantized precision is requested.

- ``full``: the caller's dtype.
- ``int8``: queries and keys as int8 with one scale per token, keys smoothed by their mean over tokens.
  Both are rotated by a Hadamard matrix in blocks of channels first, which leaves their products as they
  are and spreads large channels. Weights and values keep the caller's dtype.
- ``int8-fp8``: additionally, weights and values as e4m3. Values have one scale per channel and are
  smoothed by their mean. In dense attention, runs of 128 keys share a scale, because that is faster on a
  GPU and e4m3 makes most of the error anyway.

The scheme is SageAttention2's (arXiv 2411.10958), with int8 in place of int4, and with the rotation of
QuaRot (arXiv 2404.00456).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from dit_accel_kernels.contracts import ContractError

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["full", "int8", "int8-fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
INT8_MAX = 127
E4M3_MAX = 448.0
# Keys that share an int8 scale in dense attention. Each has its own in sparse attention, which gathers keys.
DENSE_KEYS_PER_SCALE = {"int8": 1, "int8-fp8": 128}
# Channels that a rotation mixes are 2 ** ROTATION_LEVELS.
ROTATION_LEVELS = 4
# The first CUDA compute capability with e4m3 products.
FP8_CAPABILITY = (8, 9)


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a device can run a precision, or simulate it on a CPU.

    Args:
        precision: one of PRECISIONS.
        device: where attention runs.

    Raises:
        ContractError: if the precision is unknown or the device has no kernel for it.
    """
    if precision not in PRECISIONS:
        raise ContractError("precision", f"one of {', '.join(PRECISIONS)}", precision)
    if device.type != "cuda" or precision != "int8-fp8":
        return
    if torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        expected = "full or int8 below compute capability 8.9"
        raise ContractError("precision", expected, precision)


@dataclass(frozen=True)
class SimulatedInputs:
    """Attention's inputs, quantized and dequantized.

    Attributes:
        query: float32 ``[B, H, Sq, D]``, rotated.
        key: float32 ``[B, H, Sk, D]``, without its mean, rotated.
        value: ``[B, H, Sk, D]``, float32 multiples of e4m3 values without their mean, or the caller's
            own tensor.
        value_mean: float32 ``[B, H, D]``, to add to the output; None if values are not quantized.
        lse_shift: float32 ``[B, H, Sq]``, query times mean key, which the scores lack.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    value_mean: Tensor | None
    lse_shift: Tensor


def rotation_levels(head_dim: int) -> int:
    """Return how many times pairs of channels are mixed, at most as often as blocks fit into head_dim."""
    return min(ROTATION_LEVELS, (head_dim & -head_dim).bit_length() - 1)


def rotate(x: Tensor) -> Tensor:
    """Multiply blocks of channels by an orthonormal Hadamard matrix.

    The kernels add in this order, too, so both round to the same integers.

    Args:
        x: float32 ``[..., D]``.
    """
    levels = rotation_levels(x.shape[-1])
    blocks = x.unflatten(-1, (-1, 1 << levels))
    for _ in range(levels):
        even, odd = blocks[..., 0::2], blocks[..., 1::2]
        blocks = torch.cat([even + odd, even - odd], -1)
    rotated: Tensor = blocks.flatten(-2) * 2 ** (-0.5 * levels)
    return rotated


def round_int8(x: Tensor, tokens_per_scale: int = 1) -> Tensor:
    """Round ``[..., S, D]`` to 255 symmetric levels, half away from zero, with one scale for a run of tokens."""
    largest = x.abs().amax(-1, keepdim=True)  # [..., S, 1]
    if tokens_per_scale > 1:
        runs = [part.amax(-2, keepdim=True) for part in largest.split(tokens_per_scale, -2)]
        largest = torch.cat(runs, -2).repeat_interleave(tokens_per_scale, -2)[..., : x.shape[-2], :]
    scale = (largest / INT8_MAX).clamp(min=1e-12)
    ratio = x / scale
    return (ratio.abs() + 0.5).floor().clamp(max=INT8_MAX) * ratio.sign() * scale


def simulate_quantization(
    query: Tensor, key: Tensor, value: Tensor, precision: Precision, keys_per_scale: int = 1
) -> SimulatedInputs:
    """Quantize and dequantize the inputs of attention.

    Args:
        query: ``[B, H, Sq, D]``.
        key, value: ``[B, H, Sk, D]``.
        precision: ``"int8"`` or ``"int8-fp8"``.
        keys_per_scale: keys that share one int8 scale.
    """
    key_mean = key.float().mean(2, keepdim=True)  # [B, H, 1, D]
    lse_shift = (query.float() * key_mean).sum(-1)
    query = round_int8(rotate(query.float()))
    key = round_int8(rotate(key.float() - key_mean), keys_per_scale)
    if precision == "int8":
        return SimulatedInputs(query, key, value, None, lse_shift)
    value_mean = value.float().mean(2, keepdim=True)
    smoothed = value.float() - value_mean
    scale = (smoothed.abs().amax(2, keepdim=True) / E4M3_MAX).clamp(min=1e-12)
    value = (smoothed / scale).to(torch.float8_e4m3fn).float() * scale
    return SimulatedInputs(query, key, value, value_mean[:, :, 0], lse_shift)


def round_weights_e4m3(weights: Tensor) -> Tensor:
    """Round softmax weights to e4m3, scaled by each row's largest weight as in the kernels."""
    row_max = weights.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scale = row_max / E4M3_MAX
    return (weights / scale).to(torch.float8_e4m3fn).float() * scale
