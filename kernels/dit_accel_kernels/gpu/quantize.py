"""Quantize attention's inputs as SageAttention does (arXiv 2410.02367, 2411.10958), per token.

Queries and keys become int8 with one scale per token. Keys are smoothed first: their mean over tokens
is subtracted. Softmax does not change by that, and `Quantized.lse_shift` restores the log-sum-exp.
Then both are rotated, as `dit_accel_kernels.precision.rotate` does.
Values become e4m3 with one scale per channel, also smoothed by their mean. The mean is added to the
output, which is exact because rows of the softmax sum to one. The caller's tensors are not changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from dit_accel_kernels.gpu.launch import (
    is_interpreted,
    make_last_contiguous,
    pad_to_power_of_two,
)
from dit_accel_kernels.precision import E4M3_MAX, rotation_levels

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_S = 32


@dataclass(frozen=True)
class Quantized:
    """Queries, keys and values as a kernel reads them, with the scales that undo quantization.

    Attributes:
        query, key, value: ``[B, H, S, D]``, or ``[H, S, D]`` after `select_heads`. Queries and keys are rotated.
        query_scale, key_scale: float32 ``[B, H, S]``; None in full precision.
        value_scale, value_mean: float32 ``[B, H, D]``; None unless values are e4m3.
        keys_per_scale: keys that share one key_scale; 0 if all keys of a head do.
        key_mean: float32 ``[B, H, D]``, which smoothing took off the keys; None in full precision.
        lse_shift: float32 ``[B, H, S]``, query times mean key, which the scores lack.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_scale: Tensor | None = None
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None
    value_mean: Tensor | None = None
    key_mean: Tensor | None = None
    lse_shift: Tensor | None = None
    keys_per_scale: int = 1

    def select_heads(self, batch: int, heads: slice) -> Quantized:
        """Return the tensors of some heads of one batch element, ``[H, S, D]``."""
        tensors = {
            name: x[batch, heads] if isinstance(x, torch.Tensor) else x
            for name, x in vars(self).items()
        }
        return Quantized(**tensors)  # type: ignore[arg-type]


@triton.jit
def _load_tile(
    x_ptr,
    pid_bh,
    offs_s,
    num_heads,
    seq_len,
    stride_xb,
    stride_xh,
    stride_xs,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Load rows of one head as float32 ``[S, D]``, zero outside; also return offs_d and the mask."""
    offs_d = tl.arange(0, BLOCK_D)
    mask_sd = (offs_s < seq_len)[:, None] & (offs_d < HEAD_DIM)[None, :]
    x_ptr += (pid_bh // num_heads) * stride_xb + (pid_bh % num_heads) * stride_xh
    x = tl.load(x_ptr + offs_s.to(tl.int64)[:, None] * stride_xs + offs_d, mask_sd, 0.0)
    return x.to(tl.float32), offs_d, mask_sd


@triton.jit
def _rotate(x, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, LEVELS: tl.constexpr):
    """Multiply blocks of ``2 ** LEVELS`` channels of x ``[S, D]`` by an orthonormal Hadamard matrix."""
    WIDTH: tl.constexpr = 1 << LEVELS
    for _ in tl.static_range(LEVELS):
        even, odd = tl.split(tl.reshape(x, [BLOCK_S, BLOCK_D // WIDTH, WIDTH // 2, 2]))
        halves = tl.permute(tl.join(even + odd, even - odd), [0, 1, 3, 2])
        x = tl.reshape(halves, [BLOCK_S, BLOCK_D])
    return x * 2.0 ** (-0.5 * LEVELS)


@triton.jit
def _quantize_int8_kernel(
    x_ptr,
    mean_ptr,  # float32 [BH, D]
    quantized_ptr,  # int8 [BH, S, D]
    scale_ptr,  # float32 [BH, S]
    stride_xb,
    stride_xh,
    stride_xs,
    stride_scale,
    num_heads,
    seq_len,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Quantize ``BLOCK_S`` tokens to int8, one scale per token, after subtracting the mean and rotating."""
    pid_bh = tl.program_id(1).to(tl.int64)
    offs_s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    x, offs_d, mask_sd = _load_tile(
        x_ptr, pid_bh, offs_s, num_heads, seq_len, stride_xb, stride_xh, stride_xs,
        HEAD_DIM, BLOCK_D,
    )  # fmt: skip
    if HAS_MEAN:
        x -= tl.load(mean_ptr + pid_bh * HEAD_DIM + offs_d, offs_d < HEAD_DIM, 0.0)[None, :]
        x = tl.where(mask_sd, x, 0.0)
    x = _rotate(x, BLOCK_S, BLOCK_D, LEVELS)
    scale = tl.maximum(tl.max(tl.abs(x), 1) / 127.0, 1e-12)  # [S]
    ratio = x / scale[:, None]
    # The cast to int8 truncates, so adding a half first rounds half away from zero.
    rounded = tl.minimum(tl.maximum(tl.where(ratio < 0, ratio - 0.5, ratio + 0.5), -127.0), 127.0)
    offs_sd = (pid_bh * seq_len + offs_s)[:, None] * HEAD_DIM + offs_d
    tl.store(quantized_ptr + offs_sd, rounded.to(tl.int8), mask_sd)
    tl.store(scale_ptr + pid_bh * stride_scale + offs_s, scale, offs_s < seq_len)


def quantize_int8(x: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rotate ``x - mean``, and quantize it to int8 with one scale per token, half away from zero.

    Args:
        x: ``[B, H, S, D]``.
        mean: float32 ``[B, H, D]``; 0 by default.

    Returns:
        int8 ``[B, H, S, D]`` and scales float32 ``[B, H, S]``. Rows of scales begin at multiples of 64
        bytes, which load in wide steps.
    """
    x = make_last_contiguous(x)
    batch, heads, seq_len, head_dim = x.shape
    quantized = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    padded_len = triton.cdiv(seq_len, 16) * 16
    scale = torch.empty(batch, heads, padded_len, dtype=torch.float32, device=x.device)
    _quantize_int8_kernel[(triton.cdiv(seq_len, BLOCK_S), batch * heads)](
        x,
        scale if mean is None else mean,
        quantized,
        scale,
        *x.stride()[:3],
        padded_len,
        heads,
        seq_len,
        HEAD_DIM=head_dim,
        BLOCK_D=pad_to_power_of_two(head_dim),
        BLOCK_S=BLOCK_S,
        HAS_MEAN=mean is not None,
        LEVELS=rotation_levels(head_dim),
    )
    return quantized, scale[..., :seq_len]


@triton.jit
def _channel_stats_kernel(
    x_ptr,
    sum_ptr,  # float32 [BH, num_chunks, D]
    min_ptr,  # float32 [BH, num_chunks, D]
    max_ptr,  # float32 [BH, num_chunks, D]
    stride_xb,
    stride_xh,
    stride_xs,
    num_heads,
    seq_len,
    num_chunks,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Write sum, minimum and maximum of each channel over ``STEPS * BLOCK_S`` tokens."""
    pid_bh = tl.program_id(1).to(tl.int64)
    pid_s = tl.program_id(0)
    offs_d = tl.arange(0, BLOCK_D)
    x_sum = tl.zeros([BLOCK_D], tl.float32)
    x_min = tl.full([BLOCK_D], float("inf"), tl.float32)
    x_max = tl.full([BLOCK_D], float("-inf"), tl.float32)
    for step in range(STEPS):
        offs_s = (pid_s * STEPS + step) * BLOCK_S + tl.arange(0, BLOCK_S)
        x, offs_d, mask_sd = _load_tile(
            x_ptr, pid_bh, offs_s, num_heads, seq_len, stride_xb, stride_xh, stride_xs,
            HEAD_DIM, BLOCK_D,
        )  # fmt: skip
        x_sum += tl.sum(x, 0)
        x_min = tl.minimum(x_min, tl.min(tl.where(mask_sd, x, float("inf")), 0))
        x_max = tl.maximum(x_max, tl.max(tl.where(mask_sd, x, float("-inf")), 0))
    offs_out = (pid_bh * num_chunks + pid_s) * HEAD_DIM + offs_d
    tl.store(sum_ptr + offs_out, x_sum, offs_d < HEAD_DIM)
    tl.store(min_ptr + offs_out, x_min, offs_d < HEAD_DIM)
    tl.store(max_ptr + offs_out, x_max, offs_d < HEAD_DIM)


def channel_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the e4m3 scale of each channel after smoothing, and the channel's mean.

    Args:
        x: ``[B, H, S, D]``, its last axis contiguous.

    Returns:
        scale and mean, float32 ``[B, H, D]``.
    """
    batch, heads, seq_len, head_dim = x.shape
    block_s, steps = 64, 8
    num_chunks = triton.cdiv(seq_len, block_s * steps)
    stats = x.new_empty(3, batch, heads, num_chunks, head_dim, dtype=torch.float32)
    _channel_stats_kernel[(num_chunks, batch * heads)](
        x,
        *stats,
        *x.stride()[:3],
        heads,
        seq_len,
        num_chunks,
        HEAD_DIM=head_dim,
        BLOCK_D=pad_to_power_of_two(head_dim),
        BLOCK_S=block_s,
        STEPS=steps,
    )
    sums, minima, maxima = stats
    mean = sums.sum(2) / seq_len
    largest = torch.maximum(maxima.amax(2) - mean, mean - minima.amin(2))
    return (largest / E4M3_MAX).clamp(min=1e-12), mean


@triton.jit
def _quantize_e4m3_kernel(
    x_ptr,
    mean_ptr,  # float32 [BH, D]
    scale_ptr,  # float32 [BH, D]
    quantized_ptr,  # e4m3 [BH, S, D], float32 in the interpreter
    stride_xb,
    stride_xh,
    stride_xs,
    num_heads,
    seq_len,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Quantize ``BLOCK_S`` tokens to e4m3, given mean and scale per channel."""
    pid_bh = tl.program_id(1).to(tl.int64)
    offs_s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    x, offs_d, mask_sd = _load_tile(
        x_ptr, pid_bh, offs_s, num_heads, seq_len, stride_xb, stride_xh, stride_xs,
        HEAD_DIM, BLOCK_D,
    )  # fmt: skip
    mean = tl.load(mean_ptr + pid_bh * HEAD_DIM + offs_d, offs_d < HEAD_DIM, 0.0)
    scale = tl.load(scale_ptr + pid_bh * HEAD_DIM + offs_d, offs_d < HEAD_DIM, 1.0)
    ratio = (x - mean[None, :]) / scale[None, :]
    offs_sd = (pid_bh * seq_len + offs_s)[:, None] * HEAD_DIM + offs_d
    tl.store(quantized_ptr + offs_sd, ratio.to(quantized_ptr.dtype.element_ty), mask_sd)


def quantize_e4m3(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize values ``[B, H, S, D]`` to e4m3, smoothed and with one scale per channel.

    Returns:
        e4m3 ``[B, H, S, D]``; scale and mean, float32 ``[B, H, D]``.
    """
    value = make_last_contiguous(value)
    scale, mean = channel_scale(value)
    # The interpreter cannot cast to e4m3, so the kernel writes float32 there.
    dtype = torch.float32 if is_interpreted(value) else torch.float8_e4m3fn
    quantized = torch.empty(value.shape, dtype=dtype, device=value.device)
    batch, heads, seq_len, head_dim = value.shape
    _quantize_e4m3_kernel[(triton.cdiv(seq_len, BLOCK_S), batch * heads)](
        value,
        mean,
        scale,
        quantized,
        *value.stride()[:3],
        heads,
        seq_len,
        HEAD_DIM=head_dim,
        BLOCK_D=pad_to_power_of_two(head_dim),
        BLOCK_S=BLOCK_S,
    )
    return quantized.to(torch.float8_e4m3fn), scale, mean


def quantize(
    query: Tensor, key: Tensor, value: Tensor, *, quantize_value: bool, return_lse: bool
) -> Quantized:
    """Quantize all inputs of an attention call.

    Args:
        query, key, value: ``[B, H, S, D]``.
        quantize_value: quantize values to e4m3; otherwise they stay as they are.
        return_lse: also compute the correction of the log-sum-exp.
    """
    key_mean = key.mean(2, dtype=torch.float32)  # [B, H, D]
    query_int8, query_scale = quantize_int8(query)
    key_int8, key_scale = quantize_int8(key, key_mean)
    lse_shift = (query.float() @ key_mean[..., None])[..., 0] if return_lse else None
    quantized = Quantized(
        *(query_int8, key_int8, value, query_scale, key_scale),
        key_mean=key_mean,
        lse_shift=lse_shift,
    )
    if not quantize_value:
        return quantized
    value, value_scale, value_mean = quantize_e4m3(value)
    return replace(quantized, value=value, value_scale=value_scale, value_mean=value_mean)
