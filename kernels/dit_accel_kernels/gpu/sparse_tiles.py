"""Update the online softmax of sparse attention with tiles of listed keys, and of stand-ins."""

from __future__ import annotations

import triton
import triton.language as tl

from dit_accel_kernels.gpu.arithmetic import dot, load_rows, online_softmax_step


@triton.jit
def attend_to_listed_keys(
    q,
    qk_scale,
    start_n,
    k_list_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    stride_ks,
    stride_vs,
    k_count,
    acc,
    m_i,
    l_i,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    QK_INT8: tl.constexpr,
    PV_FP8: tl.constexpr,
    KEYS_PER_SCALE: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    SIMULATE: tl.constexpr,
):
    """Update the online softmax with ``BLOCK_N`` listed keys; only a ``MASKED`` tile may pass the last key."""
    offs_n = start_n + tl.arange(0, BLOCK_N)
    mask_n = offs_n < k_count
    if MASKED:
        k_idx = tl.load(k_list_ptr + offs_n, mask_n, 0)  # int32 [N]
    else:
        k_idx = tl.load(k_list_ptr + offs_n)
    k_idx = k_idx.to(tl.int64) if WIDE else k_idx
    k = load_rows(k_ptr, k_idx * stride_ks, mask_n, HEAD_DIM, BLOCK_D, MASKED)
    v = load_rows(v_ptr, k_idx * stride_vs, mask_n, HEAD_DIM, BLOCK_D, MASKED)
    qk = dot(q, tl.trans(k), SIMULATE).to(tl.float32)  # [M, N]
    if QK_INT8 and KEYS_PER_SCALE == 1:
        if MASKED:
            qk *= tl.load(k_scale_ptr + k_idx, mask_n, 0.0)[None, :]
        else:
            qk *= tl.load(k_scale_ptr + k_idx)[None, :]
    if MASKED:
        qk = tl.where(mask_n[None, :], qk, float("-inf"))
    return online_softmax_step(qk, qk_scale, v, acc, m_i, l_i, PV_FP8, SIMULATE)


@triton.jit
def attend_to_stand_ins(
    q,
    qk_scale,
    k_ptr,
    v_ptr,
    bias_ptr,
    num_stand_ins,
    acc,
    m_i,
    l_i,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SIMULATE: tl.constexpr,
):
    """Update the online softmax with all stand-ins of a query group, whose number BLOCK_N divides."""
    for start_n in tl.range(0, num_stand_ins, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        k = load_rows(k_ptr, offs_n * HEAD_DIM, None, HEAD_DIM, BLOCK_D, False)
        v = load_rows(v_ptr, offs_n * HEAD_DIM, None, HEAD_DIM, BLOCK_D, False)
        # The bias is -inf for selected and for empty groups.
        qk = dot(q, tl.trans(k), SIMULATE) + tl.load(bias_ptr + offs_n)[None, :]  # [M, N]
        acc, m_i, l_i = online_softmax_step(qk, qk_scale, v, acc, m_i, l_i, False, SIMULATE)
    return acc, m_i, l_i
