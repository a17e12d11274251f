"""Quantize attention's inputs as SageAttention does (arXiv 2410.02367, 2411.10958).

Queries and keys become int8 with one scale per token, or for a run of keys. Keys are smoothed first: their
mean over tokens is subtracted. Softmax does not change by that, and `Quantized.lse_shift` restores the log-sum-exp.
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
from dit_accel_kernels.precision import DENSE_KEYS_PER_SCALE, E4M3_MAX, rotation_levels

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels.precision import Precision

BLOCK_S = 32
# Rows of transposed values are padded to a multiple of this, so they begin at multiples of 128 bytes.
VALUE_MULTIPLE = 128


@dataclass(frozen=True)
class Quantized:
    """Queries, keys and values as a kernel reads them, with the scales that undo quantization.

    Attributes:
        query, key, value: ``[B, H, S, D]``, or ``[H, S, D]`` after `select_heads`. Queries and keys are rotated.
        query_scale, key_scale: float32 ``[B, H, S]``, or one key scale for a run; None in full precision.
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


@triton.jit(do_not_specialize=("seq_len",))
def _quantize_int8_kernel(
    x_ptr,
    mean_ptr,  # float32 [BH, D]
    quantized_ptr,  # int8 [BH, S, D]
    scale_ptr,  # float32 [BH, S], or [BH, number of programs] if SHARED
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
    SHARED: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Subtract the mean of ``BLOCK_S`` tokens, rotate them, and round to int8; they have a scale each or share one."""
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
    if SHARED:
        scale = tl.zeros([BLOCK_S], tl.float32) + tl.max(scale, 0)
    ratio = x / scale[:, None]
    # The cast to int8 truncates, so adding a half first rounds half away from zero.
    rounded = tl.minimum(tl.maximum(tl.where(ratio < 0, ratio - 0.5, ratio + 0.5), -127.0), 127.0)
    offs_sd = (pid_bh * seq_len + offs_s)[:, None] * HEAD_DIM + offs_d
    tl.store(quantized_ptr + offs_sd, rounded.to(tl.int8), mask_sd)
    if SHARED:
        tl.store(scale_ptr + pid_bh * stride_scale + tl.program_id(0), tl.max(scale, 0))
    else:
        tl.store(scale_ptr + pid_bh * stride_scale + offs_s, scale, offs_s < seq_len)


def quantize_int8(
    x: Tensor, mean: Tensor | None = None, *, tokens_per_scale: int = 1
) -> tuple[Tensor, Tensor]:
    """Rotate ``x - mean``, and quantize it to int8, half away from zero.

    Args:
        x: ``[B, H, S, D]``.
        mean: float32 ``[B, H, D]``; 0 by default.
        tokens_per_scale: tokens that share a scale, 1 or a power of two.

    Returns:
        int8 ``[B, H, S, D]`` and scales float32 ``[B, H, S / tokens_per_scale]``, rounded up. Rows of scales
        begin at multiples of 64 bytes, which load in wide steps.
    """
    x = make_last_contiguous(x)
    batch, heads, seq_len, head_dim = x.shape
    is_shared = tokens_per_scale > 1
    block_s = tokens_per_scale if is_shared else BLOCK_S
    quantized = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    num_scales = triton.cdiv(seq_len, tokens_per_scale)
    padded_len = triton.cdiv(num_scales, 16) * 16
    scale = torch.empty(batch, heads, padded_len, dtype=torch.float32, device=x.device)
    _quantize_int8_kernel[(triton.cdiv(seq_len, block_s), batch * heads)](
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
        BLOCK_S=block_s,
        HAS_MEAN=mean is not None,
        SHARED=is_shared,
        LEVELS=rotation_levels(head_dim),
        num_warps=8 if is_shared else 4,
    )
    return quantized, scale[..., :num_scales]


@triton.jit(do_not_specialize=("seq_len", "num_chunks"))
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


@triton.jit(do_not_specialize=("seq_len",))
def _quantize_e4m3_kernel(
    x_ptr,
    mean_ptr,  # float32 [BH, D]
    scale_ptr,  # float32 [BH, D]
    quantized_ptr,  # e4m3 [BH, padded_len, D], or [BH, D, padded_len], float32 in the interpreter
    stride_xb,
    stride_xh,
    stride_xs,
    padded_len,
    num_heads,
    seq_len,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TRANSPOSED: tl.constexpr,
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
    ratio = tl.where(mask_sd, ratio, 0.0).to(quantized_ptr.dtype.element_ty)
    mask_sd = (offs_s < padded_len)[:, None] & (offs_d < HEAD_DIM)[None, :]
    if TRANSPOSED:
        offs_sd = (pid_bh * HEAD_DIM + offs_d)[None, :] * padded_len + offs_s[:, None]
    else:
        offs_sd = (pid_bh * padded_len + offs_s)[:, None] * HEAD_DIM + offs_d
    tl.store(quantized_ptr + offs_sd, ratio, mask_sd)


def quantize_e4m3(value: Tensor, *, transposed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize values ``[B, H, S, D]`` to e4m3, smoothed and with one scale per channel.

    Args:
        value: ``[B, H, S, D]``.
        transposed: store the result as ``[B, H, D, S]``, padded with zeros to a multiple of VALUE_MULTIPLE.

    Returns:
        e4m3 ``[B, H, S, D]``; scale and mean, float32 ``[B, H, D]``.
    """
    value = make_last_contiguous(value)
    scale, mean = channel_scale(value)
    batch, heads, seq_len, head_dim = value.shape
    padded_len = triton.cdiv(seq_len, VALUE_MULTIPLE) * VALUE_MULTIPLE if transposed else seq_len
    shape = (head_dim, padded_len) if transposed else (padded_len, head_dim)
    # The interpreter cannot cast to e4m3, so the kernel writes float32 there.
    dtype = torch.float32 if is_interpreted(value) else torch.float8_e4m3fn
    quantized = torch.empty(batch, heads, *shape, dtype=dtype, device=value.device)
    block_s = VALUE_MULTIPLE if transposed else BLOCK_S
    _quantize_e4m3_kernel[(triton.cdiv(seq_len, block_s), batch * heads)](
        value,
        mean,
        scale,
        quantized,
        *value.stride()[:3],
        padded_len,
        heads,
        seq_len,
        HEAD_DIM=head_dim,
        BLOCK_D=pad_to_power_of_two(head_dim),
        BLOCK_S=block_s,
        TRANSPOSED=transposed,
        num_warps=8 if transposed else 4,
    )
    quantized = quantized.to(torch.float8_e4m3fn)
    if transposed:
        quantized = quantized.transpose(2, 3)[:, :, :seq_len]
    return quantized, scale, mean


def quantize(
    query: Tensor, key: Tensor, value: Tensor, *, quantize_value: bool, return_lse: bool
) -> Quantized:
    """Quantize all inputs of a sparse attention call, with one scale per token.

    Args:
        query, key, value: ``[B, H, S, D]``.
        quantize_value: quantize values to e4m3; otherwise they stay as they are.
        return_lse: also compute the correction of the log-sum-exp.
    """
    inputs = _quantize_products(query, key, value, 1, return_lse)
    if not quantize_value:
        return inputs
    value, value_scale, value_mean = quantize_e4m3(value)
    return replace(inputs, value=value, value_scale=value_scale, value_mean=value_mean)


def quantize_dense(
    query: Tensor, key: Tensor, value: Tensor, precision: Precision, *, return_lse: bool
) -> Quantized:
    """Quantize all inputs of a dense attention call; e4m3 values are stored transposed.

    Args:
        query, key, value: ``[B, H, S, D]``.
        precision: ``"int8"`` or ``"int8-fp8"``.
        return_lse: also compute the correction of the log-sum-exp.
    """
    keys_per_scale = DENSE_KEYS_PER_SCALE[precision]
    inputs = _quantize_products(query, key, value, keys_per_scale, return_lse)
    if precision == "int8":
        return inputs
    value, value_scale, value_mean = quantize_e4m3(value, transposed=True)
    return replace(inputs, value=value, value_scale=value_scale, value_mean=value_mean)


def _quantize_products(
    query: Tensor, key: Tensor, value: Tensor, keys_per_scale: int, return_lse: bool
) -> Quantized:
    """Quantize queries and smoothed keys, and keep the values."""
    key_mean = key.mean(2, dtype=torch.float32)  # [B, H, D]
    query_int8, query_scale = quantize_int8(query)
    key_int8, key_scale = quantize_int8(key, key_mean, tokens_per_scale=keys_per_scale)
    return Quantized(
        *(query_int8, key_int8, value, query_scale, key_scale),
        key_mean=key_mean,
        lse_shift=(query.float() @ key_mean[..., None])[..., 0] if return_lse else None,
        keys_per_scale=keys_per_scale,
    )
