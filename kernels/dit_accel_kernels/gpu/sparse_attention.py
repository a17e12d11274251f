"""Variable-block sparse attention: gathered query tiles against packed lists of keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_accel_kernels.contracts import BlockMap
from dit_accel_kernels.gpu.arithmetic import LOG2E, dot, softmax_end, softmax_step
from dit_accel_kernels.gpu.launch import (
    Launch,
    attention_launch,
    capability,
    interpreted,
    last_contiguous,
    padded,
)
from dit_accel_kernels.gpu.planner import heads_of, key_lists, query_tiles
from dit_accel_kernels.gpu.quantize import Quantized

LIST_BYTES = 512 * 2**20  # memory that the key lists of one launch may take


@triton.jit
def _sparse_attention_kernel(
    query,
    key,
    value,
    out,
    lse,
    query_scale,
    key_scale,
    value_scale,
    value_mean,
    query_order,
    query_offsets,
    tile_start,
    tile_group,
    key_list,
    key_count,
    stride_qh,
    stride_qs,
    stride_kh,
    stride_ks,
    stride_vh,
    stride_vs,
    stride_oh,
    stride_os,
    query_tokens,
    key_tokens,
    groups,
    tiles,
    capacity,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    QK_INT8: tl.constexpr,
    PV_FP8: tl.constexpr,
    HAS_LSE: tl.constexpr,
    SIMULATE: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    group = tl.load(tile_group + head * tiles + tile)
    if group < 0:
        return
    start = tl.load(tile_start + head * tiles + tile)
    end = tl.load(query_offsets + head * (groups + 1) + group + 1)
    row = start + tl.arange(0, BLOCK_M)
    inside = row < end
    channel = tl.arange(0, BLOCK_D)
    real = channel < D
    place = tl.load(query_order + head * query_tokens + row, inside, 0)  # int64 [M]
    q = tl.load(
        query + head * stride_qh + place[:, None] * stride_qs + channel,
        inside[:, None] & real[None, :],
        0,
    )
    factor = tl.full([BLOCK_M], scale, tl.float32)  # already times log2(e)
    if QK_INT8:
        factor *= tl.load(query_scale + head * query_tokens + place, inside, 0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    keys = key_list + (head * groups + group) * capacity
    count = tl.load(key_count + head * groups + group)
    for first in tl.range(0, count, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        live = column < count
        token = tl.load(keys + column, live, 0).to(tl.int64)  # [N]
        both = live[:, None] & real[None, :]
        k = tl.load(key + head * stride_kh + token[:, None] * stride_ks + channel, both, 0)
        v = tl.load(value + head * stride_vh + token[:, None] * stride_vs + channel, both, 0.0)
        scores = dot(q, tl.trans(k), SIMULATE).to(tl.float32)  # [M, N]
        if QK_INT8:
            scores *= tl.load(key_scale + head * key_tokens + token, live, 0.0)[None, :]
        scores = tl.where(live[None, :], scores, float("-inf"))
        acc, peak, total = softmax_step(scores, factor, v, acc, peak, total, PV_FP8, SIMULATE)
    result, row_lse = softmax_end(factor, acc, peak, total, PV_FP8)
    if PV_FP8:
        result = result * tl.load(value_scale + head * D + channel, real, 0.0)[None, :]
        shift = tl.load(value_mean + head * D + channel, real, 0.0)[None, :]
        result += tl.where((total > 0)[:, None], shift, 0.0)
    tl.store(
        out + head * stride_oh + place[:, None] * stride_os + channel,
        result.to(out.dtype.element_ty),
        inside[:, None] & real[None, :],
    )
    if HAS_LSE:
        tl.store(lse + head * query_tokens + place, row_lse, inside)


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    return_lse: bool,
    *,
    quantized: Quantized | None = None,
    max_share: float = 1.0,
    launches: tuple[Launch, Launch] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The Triton form of `dit_accel_kernels.sparse_attention`; checked arguments.

    Args:
        query, key, value: ``[B, H, S, D]``.
        block_map: which groups attend to which.
        scale: softmax scale, above 0.
        return_lse: whether to return the log-sum-exp.
        quantized: int8 queries and keys (and e4m3 values) that stand for the tensors.
        max_share: no query group selects more than this share of the keys; a bound for memory.
        launches: tile shapes for large tiles and for rests of groups, the latter half as high; from
            the static table by default.
    """
    given = quantized or Quantized(query, key, value)
    kinds = given.query.dtype, given.value.dtype, query.shape[-1], capability(query)
    large, small = launches or (
        attention_launch("sparse", *kinds),
        attention_launch("small", *kinds),
    )
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32) if return_lse else None
    groups, key_tokens = block_map.selected.shape[2], key.shape[2]
    capacity = min(key_tokens, max(1, int(max_share * key_tokens)))
    step = max(1, LIST_BYTES // (4 * groups * capacity))
    for batch in range(query.shape[0]):
        for first in range(0, query.shape[1], step):
            heads = slice(first, min(first + step, query.shape[1]))
            part = heads_of(block_map, batch, heads)
            lists, counts = key_lists(part, capacity)
            call = _Call(
                given.of_heads(batch, heads),
                part,
                lists,
                counts,
                out[batch, heads],
                None if lse is None else lse[batch, heads],
                scale,
            )
            _launch(call, large, "large")
            _launch(call, small, "small")
            del call, lists, counts  # before the next lists are made
    if lse is not None and given.lse_shift is not None:
        lse += scale * given.lse_shift
    return out, lse


@dataclass(frozen=True)
class _Call:
    """The work on some heads of one batch element; tensors are ``[H, S, D]``."""

    given: Quantized
    block_map: BlockMap
    lists: Tensor
    counts: Tensor
    out: Tensor
    lse: Tensor | None
    scale: float


def _launch(call: _Call, launch: Launch, part: Literal["large", "small"]) -> None:
    """One launch over the query tiles of one height."""
    given, out, lse = call.given, call.out, call.lse
    query, key, value = (last_contiguous(x) for x in (given.query, given.key, given.value))
    heads, tokens, width = query.shape
    start, group = query_tiles(call.block_map.query_offsets, tokens, launch.block_m, part)
    tiles = start.shape[-1]
    _sparse_attention_kernel[(tiles, heads)](
        query,
        key,
        value,
        out,
        lse,
        given.query_scale,
        given.key_scale,
        given.value_scale,
        given.value_mean,
        call.block_map.query_order,
        call.block_map.query_offsets,
        start,
        group,
        call.lists,
        call.counts,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        out.stride(0),
        out.stride(1),
        tokens,
        key.shape[1],
        call.lists.shape[2],
        tiles,
        call.lists.shape[3],
        call.scale * LOG2E.value,
        D=width,
        BLOCK_D=padded(width, 32),
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        QK_INT8=given.key.dtype == torch.int8,
        PV_FP8=given.value.dtype == torch.float8_e4m3fn,
        HAS_LSE=lse is not None,
        SIMULATE=interpreted(query),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
