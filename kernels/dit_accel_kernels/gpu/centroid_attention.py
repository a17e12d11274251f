"""Attention to the centroids of skipped key groups."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_accel_kernels.contracts import BlockMap
from dit_accel_kernels.gpu.arithmetic import LOG2E, dot, softmax_end, softmax_step
from dit_accel_kernels.gpu.launch import interpreted, last_contiguous, padded
from dit_accel_kernels.gpu.planner import query_tiles

BLOCK_M, BLOCK_N = 64, 32


@triton.jit
def _centroid_attention_kernel(
    query,
    key_centroids,  # [BH, Gk, D], the query's dtype
    value_centroids,
    variance,  # 256 scale / 2 times the variance, the query's dtype
    selected,  # bool [BH, Gq, Gk]
    log_size,  # float32 [BH, Gk]
    out,
    lse,
    query_order,
    query_offsets,
    tile_start,
    tile_group,
    stride_b,
    stride_h,
    stride_s,
    heads,
    tokens,
    query_groups,
    key_groups,
    tiles,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SECOND_ORDER: tl.constexpr,
    SIMULATE: tl.constexpr,
):
    at = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    group = tl.load(tile_group + at * tiles + tile)
    if group < 0:
        return
    row = tl.load(tile_start + at * tiles + tile) + tl.arange(0, BLOCK_M)
    inside = row < tl.load(query_offsets + at * (query_groups + 1) + group + 1)
    channel = tl.arange(0, BLOCK_D)
    real = channel < D
    place = tl.load(query_order + at * tokens + row, inside, 0)
    query += (at // heads) * stride_b + (at % heads) * stride_h
    both = inside[:, None] & real[None, :]
    q = tl.load(query + place[:, None] * stride_s + channel, both, 0)
    factor = tl.full([BLOCK_M], scale, tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in tl.range(0, key_groups, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        known = column < key_groups
        taken = tl.load(selected + (at * query_groups + group) * key_groups + column, known, 1)
        bias = tl.load(log_size + at * key_groups + column, known, float("-inf"))
        skipped = (taken == 0) & (bias > float("-inf"))
        if tl.max(skipped.to(tl.int32), 0) > 0:
            centre = (at * key_groups + column)[:, None] * D + channel
            cells = known[:, None] & real[None, :]
            k = tl.load(key_centroids + centre, cells, 0)
            v = tl.load(value_centroids + centre, cells, 0)
            scores = dot(q, tl.trans(k), SIMULATE)
            if SECOND_ORDER:
                spread = tl.load(variance + centre, cells, 0)
                sixteenth = q * 0.0625  # its square fits float16 where that of q does not
                square = (sixteenth * sixteenth).to(q.dtype)
                scores += dot(square, tl.trans(spread), SIMULATE)
            scores = tl.where(skipped[None, :], scores + bias[None, :], float("-inf"))
            acc, peak, total = softmax_step(scores, factor, v, acc, peak, total, False, SIMULATE)
    result, row_lse = softmax_end(factor, acc, peak, total, False)
    target = (at * tokens + place)[:, None] * D + channel
    tl.store(out + target, result.to(out.dtype.element_ty), both)
    tl.store(lse + at * tokens + place, row_lse, inside)


def centroid_attention(
    query: Tensor,
    key_centroids: Tensor,
    value_centroids: Tensor,
    block_map: BlockMap,
    scale: float,
    key_variance: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The Triton form of `dit_accel_kernels.centroid_attention`; checked arguments."""
    query = last_contiguous(query)
    batch, heads, tokens, width = query.shape
    query_groups, key_groups = block_map.selected.shape[2:]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    keys, values = (x.to(query.dtype).contiguous() for x in (key_centroids, value_centroids))
    spread = keys if key_variance is None else (128 * scale * key_variance).to(query.dtype)
    # Logits are kept in units of scale: the bias ln n is divided by it.
    log_size = block_map.key_offsets.diff(dim=-1).float().log() / scale
    start, group = query_tiles(block_map.query_offsets, tokens, BLOCK_M, "all")
    _centroid_attention_kernel[(start.shape[-1], batch * heads)](
        query,
        keys,
        values,
        spread.contiguous(),
        block_map.selected.contiguous(),
        log_size.contiguous(),
        out,
        lse,
        block_map.query_order.contiguous(),
        block_map.query_offsets.contiguous(),
        start,
        group,
        *query.stride()[:3],
        heads,
        tokens,
        query_groups,
        key_groups,
        start.shape[-1],
        scale * LOG2E.value,
        D=width,
        BLOCK_D=padded(width),
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        SECOND_ORDER=key_variance is not None,
        SIMULATE=interpreted(query),
        num_warps=8,
        num_stages=2,
    )
    return out, lse
