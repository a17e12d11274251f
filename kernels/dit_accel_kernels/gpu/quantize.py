"""Quantization of attention's inputs: SageAttention (arXiv 2410.02367, 2411.10958), per token.

int8 queries and keys with one scale a token, keys smoothed by their mean over tokens (softmax does
not see it; the log-sum-exp gets it back), e4m3 values with one scale a channel, smoothed by their
mean (rows of softmax sum to one, so it is added back exactly). The caller's tensors are not changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_accel_kernels.gpu.launch import interpreted, last_contiguous, padded
from dit_accel_kernels.precision import E4M3_MAX


@dataclass(frozen=True)
class Quantized:
    """Queries, keys and values as a kernel reads them, with what undoes the scaling.

    Attributes:
        query, key, value: ``[B, H, S, D]``, or ``[H, S, D]`` of some heads.
        query_scale, key_scale: float32 ``[B, H, S]``; None in full precision.
        value_scale, value_mean: float32 ``[B, H, D]``; None unless values are e4m3.
        lse_shift: float32 ``[B, H, S]``, query times mean key: what smoothing took off the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_scale: Tensor | None = None
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None
    value_mean: Tensor | None = None
    lse_shift: Tensor | None = None

    def of_heads(self, batch: int, heads: slice) -> Quantized:
        """The part of some heads of one batch element, ``[H, S, D]``."""
        return Quantized(
            *(None if x is None else x[batch, heads] for x in vars(self).values())  # type: ignore
        )


@triton.jit
def _tile(
    x,
    at,
    row,
    heads,
    tokens,
    stride_b,
    stride_h,
    stride_s,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Some rows of one head as float32 ``[S, D]``, zero outside; their channels; which are inside."""
    channel = tl.arange(0, BLOCK_D)
    inside = (row < tokens)[:, None] & (channel < D)[None, :]
    base = x + (at // heads) * stride_b + (at % heads) * stride_h
    values = tl.load(base + row.to(tl.int64)[:, None] * stride_s + channel, inside, 0.0)
    return values.to(tl.float32), channel, inside


@triton.jit
def _int8_kernel(
    x,
    mean,
    quantized,
    scale,
    stride_b,
    stride_h,
    stride_s,
    heads,
    tokens,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_MEAN: tl.constexpr,
):
    at = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    values, channel, inside = _tile(
        x, at, row, heads, tokens, stride_b, stride_h, stride_s, D, BLOCK_D
    )
    if HAS_MEAN:
        values -= tl.load(mean + at * D + channel, channel < D, 0.0)[None, :]
        values = tl.where(inside, values, 0.0)
    step = tl.maximum(tl.max(tl.abs(values), 1) / 127.0, 1e-12)  # [S]
    ratio = values / step[:, None]
    rounded = tl.minimum(tl.maximum(tl.where(ratio < 0, ratio - 0.5, ratio + 0.5), -127.0), 127.0)
    target = (at * tokens + row)[:, None] * D + channel
    tl.store(quantized + target, rounded.to(tl.int8), inside)  # the cast cuts towards zero
    tl.store(scale + at * tokens + row, step, row < tokens)


def quantize_int8(x: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """int8 ``[B, H, S, D]`` and float32 scales ``[B, H, S]`` of ``x - mean``, half away from zero."""
    x = last_contiguous(x)
    batch, heads, tokens, width = x.shape
    quantized = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(x.shape[:3], dtype=torch.float32, device=x.device)
    block = 32
    _int8_kernel[(triton.cdiv(tokens, block), batch * heads)](
        x,
        scale if mean is None else mean,
        quantized,
        scale,
        x.stride(0),
        x.stride(1),
        x.stride(2),
        heads,
        tokens,
        D=width,
        BLOCK_D=padded(width),
        BLOCK_S=block,
        HAS_MEAN=mean is not None,
    )
    return quantized, scale


@triton.jit
def _channel_kernel(
    x,
    sums,
    lows,
    highs,
    stride_b,
    stride_h,
    stride_s,
    heads,
    tokens,
    chunks,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STEPS: tl.constexpr,
):
    at = tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(0)
    channel = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    low = tl.full([BLOCK_D], float("inf"), tl.float32)
    high = tl.full([BLOCK_D], float("-inf"), tl.float32)
    for step in range(STEPS):
        row = (chunk * STEPS + step) * BLOCK_S + tl.arange(0, BLOCK_S)
        values, channel, inside = _tile(
            x, at, row, heads, tokens, stride_b, stride_h, stride_s, D, BLOCK_D
        )
        total += tl.sum(values, 0)
        low = tl.minimum(low, tl.min(tl.where(inside, values, float("inf")), 0))
        high = tl.maximum(high, tl.max(tl.where(inside, values, float("-inf")), 0))
    target = (at * chunks + chunk) * D + channel
    tl.store(sums + target, total, channel < D)
    tl.store(lows + target, low, channel < D)
    tl.store(highs + target, high, channel < D)


def channel_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 scale of what is left of each channel without its mean, and that mean, float32
    ``[B, H, D]``.
    """
    batch, heads, tokens, width = x.shape
    block, steps = 64, 8
    chunks = triton.cdiv(tokens, block * steps)
    found = x.new_empty(3, batch, heads, chunks, width, dtype=torch.float32)
    _channel_kernel[(chunks, batch * heads)](
        x,
        *found,
        x.stride(0),
        x.stride(1),
        x.stride(2),
        heads,
        tokens,
        chunks,
        D=width,
        BLOCK_D=padded(width),
        BLOCK_S=block,
        STEPS=steps,
    )
    mean = found[0].sum(2) / tokens
    largest = torch.maximum(found[2].amax(2) - mean, mean - found[1].amin(2))
    return (largest / E4M3_MAX).clamp(min=1e-12), mean


@triton.jit
def _e4m3_kernel(
    x,
    mean,
    scale,
    quantized,
    stride_b,
    stride_h,
    stride_s,
    heads,
    tokens,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    at = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    values, channel, inside = _tile(
        x, at, row, heads, tokens, stride_b, stride_h, stride_s, D, BLOCK_D
    )
    middle = tl.load(mean + at * D + channel, channel < D, 0.0)
    step = tl.load(scale + at * D + channel, channel < D, 1.0)
    ratio = (values - middle[None, :]) / step[None, :]
    target = (at * tokens + row)[:, None] * D + channel
    tl.store(quantized + target, ratio.to(quantized.dtype.element_ty), inside)


def quantize_e4m3(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e4m3 ``[B, H, S, D]``, scale and mean float32 ``[B, H, D]`` of values smoothed per channel."""
    value = last_contiguous(value)
    scale, mean = channel_scale(value)
    # The interpreter cannot cast to e4m3: there the kernel writes float32.
    dtype = torch.float32 if interpreted(value) else torch.float8_e4m3fn
    quantized = torch.empty(value.shape, dtype=dtype, device=value.device)
    batch, heads, tokens, width = value.shape
    block = 32
    _e4m3_kernel[(triton.cdiv(tokens, block), batch * heads)](
        value,
        mean,
        scale,
        quantized,
        value.stride(0),
        value.stride(1),
        value.stride(2),
        heads,
        tokens,
        D=width,
        BLOCK_D=padded(width),
        BLOCK_S=block,
    )
    return quantized.to(torch.float8_e4m3fn), scale, mean


def quantize(
    query: Tensor, key: Tensor, value: Tensor, values_too: bool, with_lse: bool
) -> Quantized:
    """All inputs of a quantized attention call ``[B, H, S, D]``; ``with_lse``: also what puts its
    log-sum-exp right.
    """
    key_mean = key.mean(2, dtype=torch.float32)  # [B, H, D]
    int_query, query_scale = quantize_int8(query)
    int_key, key_scale = quantize_int8(key, key_mean)
    shift = (query.float() @ key_mean[..., None])[..., 0] if with_lse else None
    given = Quantized(int_query, int_key, value, query_scale, key_scale, lse_shift=shift)
    if not values_too:
        return given
    value, value_scale, value_mean = quantize_e4m3(value)
    return replace(given, value=value, value_scale=value_scale, value_mean=value_mean)
