"""Attend to the centroids of skipped key groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    is_interpreted,
    make_last_contiguous,
    pad_to_power_of_two,
)
from dit_accel_kernels.gpu.planner import build_query_tiles

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels.contracts import BlockMap


def select_centroid_launch(dtype: torch.dtype, block_d: int) -> Launch:
    """Return the tile shape of the kernel; it fits 99 KB of shared memory."""
    if dtype.itemsize == 2:
        return Launch(64, 32, 4, 2) if block_d <= 128 else Launch(32, 16, 4, 2)
    return Launch(32, 16, 4, 2) if block_d <= 128 else Launch(16, 16, 4, 1)


@triton.jit
def _centroid_attention_fwd_kernel(
    q_ptr,
    k_centroids_ptr,  # [BH, Gk, D], the query's dtype
    v_centroids_ptr,  # [BH, Gk, D], the query's dtype
    selected_ptr,  # bool [BH, Gq, Gk]
    log_size_ptr,  # float32 [BH, Gk]
    out_ptr,  # [BH, Sq, D]
    lse_ptr,  # float32 [BH, Sq]
    q_order_ptr,  # int64 [BH, Sq]
    q_offsets_ptr,  # int64 [BH, Gq + 1]
    tile_start_ptr,  # int32 [BH, num_tiles]
    tile_group_ptr,  # int32 [BH, num_tiles]
    stride_qb,
    stride_qh,
    stride_qs,
    num_heads,
    q_len,
    num_q_groups,
    num_k_groups,
    num_tiles,
    sm_scale,  # times log2(e)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SIMULATE: tl.constexpr,
):
    """Attend one tile of a query group to the centroids of the key groups it skips."""
    pid_bh = tl.program_id(1).to(tl.int64)
    pid_m = tl.program_id(0)
    q_group = tl.load(tile_group_ptr + pid_bh * num_tiles + pid_m)
    if q_group < 0:
        return
    offs_m = tl.load(tile_start_ptr + pid_bh * num_tiles + pid_m) + tl.arange(0, BLOCK_M)
    mask_m = offs_m < tl.load(q_offsets_ptr + pid_bh * (num_q_groups + 1) + q_group + 1)
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HEAD_DIM
    q_idx = tl.load(q_order_ptr + pid_bh * q_len + offs_m, mask_m, 0)
    q_ptr += (pid_bh // num_heads) * stride_qb + (pid_bh % num_heads) * stride_qh
    mask_md = mask_m[:, None] & mask_d[None, :]
    q = tl.load(q_ptr + q_idx[:, None] * stride_qs + offs_d, mask_md, 0)
    qk_scale = tl.full([BLOCK_M], sm_scale, tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    for start_n in tl.range(0, num_k_groups, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        mask_n = offs_n < num_k_groups
        selected = tl.load(
            selected_ptr + (pid_bh * num_q_groups + q_group) * num_k_groups + offs_n, mask_n, 1
        )
        log_size = tl.load(log_size_ptr + pid_bh * num_k_groups + offs_n, mask_n, float("-inf"))
        skipped = (selected == 0) & (log_size > float("-inf"))
        if tl.max(skipped.to(tl.int32), 0) > 0:
            offs_nd = (pid_bh * num_k_groups + offs_n)[:, None] * HEAD_DIM + offs_d
            mask_nd = mask_n[:, None] & mask_d[None, :]
            k = tl.load(k_centroids_ptr + offs_nd, mask_nd, 0)
            v = tl.load(v_centroids_ptr + offs_nd, mask_nd, 0)
            qk = dot(q, tl.trans(k), SIMULATE)
            qk = tl.where(skipped[None, :], qk + log_size[None, :], float("-inf"))
            acc, m_i, l_i = online_softmax_step(qk, qk_scale, v, acc, m_i, l_i, False, SIMULATE)
    out, lse = online_softmax_end(acc, m_i, l_i, False)
    offs_out = (pid_bh * q_len + q_idx)[:, None] * HEAD_DIM + offs_d
    tl.store(out_ptr + offs_out, out.to(out_ptr.dtype.element_ty), mask_md)
    tl.store(lse_ptr + pid_bh * q_len + q_idx, lse, mask_m)


def centroid_attention(
    query: Tensor,
    key_centroids: Tensor,
    value_centroids: Tensor,
    block_map: BlockMap,
    *,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend to the centroids of the key groups that each query group skips, for `attend_to_skipped`.

    Args:
        query: ``[B, H, Sq, D]``.
        key_centroids, value_centroids: mean key and value of each key group, ``[B, H, Gk, D]``.
        block_map: groups of queries and keys, and which are selected.
        scale: softmax scale above 0.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype; log-sum-exp float32 ``[B, H, Sq]``.
    """
    query = make_last_contiguous(query)
    batch, heads, q_len, head_dim = query.shape
    num_q_groups, num_k_groups = block_map.selected.shape[2:]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    k, v = (x.to(query.dtype).contiguous() for x in (key_centroids, value_centroids))
    # Scores are kept without the softmax scale, so the bias ln n is divided by it.
    log_size = block_map.key_offsets.diff(dim=-1).float().log() / scale
    block_d = pad_to_power_of_two(head_dim)
    launch = select_centroid_launch(query.dtype, block_d)
    tiles = build_query_tiles(block_map.query_offsets, q_len, launch.block_m)
    num_tiles = tiles[0].shape[-1]
    _centroid_attention_fwd_kernel[(num_tiles, batch * heads)](
        query,
        k,
        v,
        block_map.selected.contiguous(),
        log_size.contiguous(),
        out,
        lse,
        block_map.query_order.contiguous(),
        block_map.query_offsets.contiguous(),
        *tiles,
        *query.stride()[:3],
        heads,
        q_len,
        num_q_groups,
        num_k_groups,
        num_tiles,
        scale * LOG2E.value,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        SIMULATE=is_interpreted(query),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return out, lse
