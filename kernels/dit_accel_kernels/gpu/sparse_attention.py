"""Run variable-block sparse attention: gathered query tiles against packed lists of keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import triton
import triton.language as tl

from dit_accel_kernels.gpu.arithmetic import (
    LOG2E,
    dot,
    online_softmax_end,
    online_softmax_step,
)
from dit_accel_kernels.gpu.launch import (
    Launch,
    compute_capability,
    is_interpreted,
    make_last_contiguous,
    pad_to_power_of_two,
    select_launch,
)
from dit_accel_kernels.gpu.planner import build_key_lists, build_query_tiles, slice_heads
from dit_accel_kernels.gpu.quantize import Quantized

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels.contracts import BlockMap

# Bytes that the key lists of one launch may take.
MAX_LIST_BYTES = 512 * 2**20


@triton.jit
def _sparse_attention_fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,  # float32 [H, Sq]
    q_scale_ptr,  # float32 [H, Sq]
    k_scale_ptr,  # float32 [H, Sk]
    v_scale_ptr,  # float32 [H, D]
    v_mean_ptr,  # float32 [H, D]
    q_order_ptr,  # int64 [H, Sq]
    q_offsets_ptr,  # int64 [H, Gq + 1]
    tile_start_ptr,  # int32 [H, num_tiles]
    tile_group_ptr,  # int32 [H, num_tiles]
    k_list_ptr,  # int32 [H, Gq, Sk]
    k_count_ptr,  # int32 [H, Gq]
    stride_qh,
    stride_qs,
    stride_kh,
    stride_ks,
    stride_vh,
    stride_vs,
    stride_oh,
    stride_os,
    q_len,
    k_len,
    num_q_groups,
    num_tiles,
    sm_scale,  # times log2(e)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    QK_INT8: tl.constexpr,
    PV_FP8: tl.constexpr,
    HAS_LSE: tl.constexpr,
    SIMULATE: tl.constexpr,
):
    """Attend one tile of a query group to the keys in the group's list."""
    pid_h = tl.program_id(1).to(tl.int64)
    pid_m = tl.program_id(0)
    q_group = tl.load(tile_group_ptr + pid_h * num_tiles + pid_m)
    if q_group < 0:
        return
    start_m = tl.load(tile_start_ptr + pid_h * num_tiles + pid_m)
    end_m = tl.load(q_offsets_ptr + pid_h * (num_q_groups + 1) + q_group + 1)
    offs_m = start_m + tl.arange(0, BLOCK_M)
    mask_m = offs_m < end_m
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HEAD_DIM
    mask_md = mask_m[:, None] & mask_d[None, :]
    q_idx = tl.load(q_order_ptr + pid_h * q_len + offs_m, mask_m, 0)  # int64 [M]
    q = tl.load(q_ptr + pid_h * stride_qh + q_idx[:, None] * stride_qs + offs_d, mask_md, 0)
    qk_scale = tl.full([BLOCK_M], sm_scale, tl.float32)
    if QK_INT8:
        qk_scale *= tl.load(q_scale_ptr + pid_h * q_len + q_idx, mask_m, 0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    k_list_ptr += (pid_h * num_q_groups + q_group) * k_len
    k_count = tl.load(k_count_ptr + pid_h * num_q_groups + q_group)
    for start_n in tl.range(0, k_count, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        mask_n = offs_n < k_count
        k_idx = tl.load(k_list_ptr + offs_n, mask_n, 0).to(tl.int64)  # [N]
        mask_nd = mask_n[:, None] & mask_d[None, :]
        k = tl.load(k_ptr + pid_h * stride_kh + k_idx[:, None] * stride_ks + offs_d, mask_nd, 0)
        v = tl.load(v_ptr + pid_h * stride_vh + k_idx[:, None] * stride_vs + offs_d, mask_nd, 0.0)
        qk = dot(q, tl.trans(k), SIMULATE).to(tl.float32)  # [M, N]
        if QK_INT8:
            qk *= tl.load(k_scale_ptr + pid_h * k_len + k_idx, mask_n, 0.0)[None, :]
        qk = tl.where(mask_n[None, :], qk, float("-inf"))
        acc, m_i, l_i = online_softmax_step(qk, qk_scale, v, acc, m_i, l_i, PV_FP8, SIMULATE)
    out, lse = online_softmax_end(qk_scale, acc, m_i, l_i, PV_FP8)
    if PV_FP8:
        out = out * tl.load(v_scale_ptr + pid_h * HEAD_DIM + offs_d, mask_d, 0.0)[None, :]
        v_mean = tl.load(v_mean_ptr + pid_h * HEAD_DIM + offs_d, mask_d, 0.0)[None, :]
        out += tl.where((l_i > 0)[:, None], v_mean, 0.0)
    tl.store(
        out_ptr + pid_h * stride_oh + q_idx[:, None] * stride_os + offs_d,
        out.to(out_ptr.dtype.element_ty),
        mask_md,
    )
    if HAS_LSE:
        tl.store(lse_ptr + pid_h * q_len + q_idx, lse, mask_m)


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    *,
    scale: float,
    return_lse: bool,
    quantized: Quantized | None = None,
    launches: tuple[Launch, Launch] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run `dit_accel_kernels.sparse_attention` in Triton; arguments are checked there.

    Args:
        query, key, value: ``[B, H, S, D]``.
        block_map: which groups attend to which.
        scale: softmax scale, above 0.
        return_lse: return the log-sum-exp instead of None.
        quantized: quantized inputs that replace the tensors in the products.
        launches: tile shapes for large and for small tiles, the latter half as high; from the static
            table by default.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype; log-sum-exp float32 ``[B, H, Sq]``.
    """
    inputs = quantized or Quantized(query, key, value)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32) if return_lse else None
    large, small = launches or _select_launches(inputs)
    list_bytes = 4 * block_map.selected.shape[2] * key.shape[2]  # of one head
    step = max(1, MAX_LIST_BYTES // list_bytes)
    for batch in range(query.shape[0]):
        for first in range(0, query.shape[1], step):
            heads = slice(first, first + step)
            map_of_heads = slice_heads(block_map, batch, heads)
            work = _HeadsWork(
                inputs.select_heads(batch, heads),
                map_of_heads,
                *build_key_lists(map_of_heads),
                out[batch, heads],
                None if lse is None else lse[batch, heads],
                scale,
            )
            _launch_tiles(work, large, "large")
            _launch_tiles(work, small, "small")
            # Free the key lists before the next ones are built.
            del work
    if lse is not None and inputs.lse_shift is not None:
        lse += scale * inputs.lse_shift
    return out, lse


def _select_launches(inputs: Quantized) -> tuple[Launch, Launch]:
    """Return the tile shapes of large and small tiles from the static table."""
    dtypes = inputs.query.dtype, inputs.value.dtype
    device = inputs.query.shape[-1], compute_capability(inputs.query)
    return select_launch("sparse", *dtypes, *device), select_launch("small", *dtypes, *device)


@dataclass(frozen=True)
class _HeadsWork:
    """The work on some heads of one batch element; tensors are ``[H, S, D]``.

    Attributes:
        inputs: queries, keys and values to multiply.
        block_map: the map of these heads.
        key_lists: packed keys int32 ``[1, H, Gq, Sk]``.
        key_counts: number of packed keys, int32 ``[1, H, Gq]``.
        out, lse: views of the outputs.
        scale: softmax scale.
    """

    inputs: Quantized
    block_map: BlockMap
    key_lists: Tensor
    key_counts: Tensor
    out: Tensor
    lse: Tensor | None
    scale: float


def _launch_tiles(work: _HeadsWork, launch: Launch, kind: Literal["large", "small"]) -> None:
    """Launch the kernel over the query tiles of one height."""
    inputs, out, lse, block_map = work.inputs, work.out, work.lse, work.block_map
    q, k, v = (make_last_contiguous(x) for x in (inputs.query, inputs.key, inputs.value))
    heads, q_len, head_dim = q.shape
    tiles = build_query_tiles(block_map.query_offsets, q_len, launch.block_m, kind)
    num_tiles = tiles[0].shape[-1]
    _sparse_attention_fwd_kernel[(num_tiles, heads)](
        q,
        k,
        v,
        out,
        lse,
        inputs.query_scale,
        inputs.key_scale,
        inputs.value_scale,
        inputs.value_mean,
        block_map.query_order,
        block_map.query_offsets,
        *tiles,
        work.key_lists,
        work.key_counts,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *out.stride()[:2],
        q_len,
        k.shape[1],
        work.key_lists.shape[2],
        num_tiles,
        work.scale * LOG2E.value,
        HEAD_DIM=head_dim,
        BLOCK_D=pad_to_power_of_two(head_dim, 32),
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        QK_INT8=k.dtype == torch.int8,
        PV_FP8=v.dtype == torch.float8_e4m3fn,
        HAS_LSE=lse is not None,
        SIMULATE=is_interpreted(q),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
