"""k-means in Triton: assignment with a running argmax (no tokens x clusters matrix), and means of
sorted segments (no atomics, so equal input gives equal bits).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_accel_kernels.gpu.arithmetic import dot
from dit_accel_kernels.gpu.launch import interpreted, last_contiguous, padded


@triton.jit
def _assign_kernel(
    x,
    centroids,  # [BH, K, D], the tokens' dtype
    half_norm,  # float32 [BH, K]
    labels,  # int64 [BH, S]
    stride_b,
    stride_h,
    stride_s,
    heads,
    tokens,
    count,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SIMULATE: tl.constexpr,
):
    at = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    channel = tl.arange(0, BLOCK_D)
    inside, real = row < tokens, channel < D
    x += (at // heads) * stride_b + (at % heads) * stride_h
    values = tl.load(
        x + row.to(tl.int64)[:, None] * stride_s + channel, inside[:, None] & real[None, :], 0
    )
    best = tl.full([BLOCK_S], float("-inf"), tl.float32)
    label = tl.zeros([BLOCK_S], tl.int32)
    for first in tl.range(0, count, BLOCK_K):
        cluster = first + tl.arange(0, BLOCK_K)
        known = cluster < count
        c = tl.load(
            centroids + (at * count + cluster)[:, None] * D + channel,
            known[:, None] & real[None, :],
            0,
        )
        score = dot(values, tl.trans(c), SIMULATE)
        score -= tl.load(half_norm + at * count + cluster, known, float("inf"))[None, :]
        top, place = tl.max(score, 1, return_indices=True)
        label = tl.where(top > best, first + place, label)
        best = tl.maximum(best, top)
    tl.store(labels + at * tokens + row, label.to(tl.int64), inside)


def kmeans_assign(tokens: Tensor, centroids: Tensor) -> Tensor:
    """Labels int64 ``[B, H, S]``. Centroids are rounded to the tokens' dtype, for the matrix unit."""
    tokens = last_contiguous(tokens)
    batch, heads, size, width = tokens.shape
    count = centroids.shape[2]
    rounded = centroids.to(tokens.dtype).contiguous()
    half_norm = 0.5 * rounded.float().square().sum(-1)  # [B, H, K]
    labels = torch.empty(batch, heads, size, dtype=torch.int64, device=tokens.device)
    block = 128 if tokens.dtype.itemsize == 2 else 64
    _assign_kernel[(triton.cdiv(size, block), batch * heads)](
        tokens,
        rounded,
        half_norm,
        labels,
        *tokens.stride()[:3],
        heads,
        size,
        count,
        D=width,
        BLOCK_D=padded(width),
        BLOCK_S=block,
        BLOCK_K=64,
        SIMULATE=interpreted(tokens),
        num_warps=4 if block == 64 or padded(width) < 128 else 8,
        num_stages=3,
    )
    return labels


@triton.jit
def _means_kernel(
    x,
    order,  # int64 [BH, S]
    offsets,  # int64 [BH, K + 1]
    centroids,  # float32 [BH, K, D]: kept by empty clusters
    means,  # float32 [BH, K, D]
    stride_b,
    stride_h,
    stride_s,
    heads,
    tokens,
    count,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SQUARED: tl.constexpr,  # means of squares
):
    at = tl.program_id(1).to(tl.int64)
    cluster = tl.program_id(0)
    channel = tl.arange(0, BLOCK_D)
    real = channel < D
    x += (at // heads) * stride_b + (at % heads) * stride_h
    begin = tl.load(offsets + at * (count + 1) + cluster)
    end = tl.load(offsets + at * (count + 1) + cluster + 1)
    sums = tl.zeros([BLOCK_D], tl.float32)
    for first in tl.range(begin, end, BLOCK_S):
        place = first + tl.arange(0, BLOCK_S)
        inside = place < end
        token = tl.load(order + at * tokens + place, inside, 0)
        values = tl.load(
            x + token[:, None] * stride_s + channel, inside[:, None] & real[None, :], 0
        )
        values = values.to(tl.float32)
        sums += tl.sum(values * values if SQUARED else values, 0)
    target = (at * count + cluster) * D + channel
    kept = tl.load(centroids + target, real, 0.0)
    size = (end - begin).to(tl.float32)
    tl.store(means + target, tl.where(end > begin, sums / tl.maximum(size, 1.0), kept), real)


def kmeans_update(
    tokens: Tensor, order: Tensor, offsets: Tensor, centroids: Tensor, squared: bool = False
) -> Tensor:
    """Means float32 ``[B, H, K, D]`` of tokens grouped by ``order`` and ``offsets``, or of their squares."""
    tokens = last_contiguous(tokens)
    batch, heads, size, width = tokens.shape
    count = centroids.shape[2]
    centroids = centroids.float().contiguous()
    means = torch.empty_like(centroids)
    _means_kernel[(count, batch * heads)](
        tokens,
        order.contiguous(),
        offsets.contiguous(),
        centroids,
        means,
        *tokens.stride()[:3],
        heads,
        size,
        count,
        D=width,
        BLOCK_D=padded(width),
        BLOCK_S=32,
        SQUARED=squared,
        num_warps=4,
    )
    return means
