"""Run dense attention with log-sum-exp, in full precision or quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from dit_accel_kernels.gpu.arithmetic import (
    LOG2E,
    NO_KEY,
    dot,
    load_rows,
    online_softmax_end,
    online_softmax_step,
    restore_values,
)
from dit_accel_kernels.gpu.launch import (
    Launch,
    compute_capability,
    is_interpreted,
    make_last_contiguous,
    needs_wide_offsets,
    pad_to_power_of_two,
    select_launch,
)
from dit_accel_kernels.gpu.quantize import VALUE_MULTIPLE, Quantized

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def _attend_to_tile(
    q,
    qk_scale,
    start_n,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    stride_ks,
    stride_vs,
    stride_vd,
    k_len,
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
    """Update the online softmax with ``BLOCK_N`` keys; only a ``MASKED`` tile may pass the last key."""
    offs_n = start_n + tl.arange(0, BLOCK_N)
    mask_n = offs_n < k_len
    k_idx = offs_n.to(tl.int64) if WIDE else offs_n
    k = load_rows(k_ptr, k_idx * stride_ks, mask_n, HEAD_DIM, BLOCK_D, MASKED)
    if PV_FP8:
        # The matrix unit wants 8-bit values transposed. `quantize` stores them so and pads them
        # with zeros to whole tiles, so no mask over keys is needed.
        offs_d = tl.arange(0, BLOCK_D).to(tl.int64) if WIDE else tl.arange(0, BLOCK_D)
        v_ptrs = v_ptr + (offs_d[:, None] * stride_vd + k_idx[None, :])
        if HEAD_DIM < BLOCK_D:
            v = tl.trans(tl.load(v_ptrs, (offs_d < HEAD_DIM)[:, None], 0.0))
        else:
            v = tl.trans(tl.load(v_ptrs))
    else:
        v = load_rows(v_ptr, k_idx * stride_vs, mask_n, HEAD_DIM, BLOCK_D, MASKED)
    qk = dot(q, tl.trans(k), SIMULATE).to(tl.float32)  # [M, N]
    if QK_INT8:
        if KEYS_PER_SCALE > 1:
            qk_scale = qk_scale * tl.load(k_scale_ptr + start_n // KEYS_PER_SCALE)
        elif KEYS_PER_SCALE == 1:
            if MASKED:
                qk *= tl.load(k_scale_ptr + k_idx, mask_n, 0.0)[None, :]
            else:
                qk *= tl.load(k_scale_ptr + k_idx)[None, :]
    if MASKED:
        qk = tl.where(mask_n[None, :], qk, float("-inf"))
    return online_softmax_step(qk, qk_scale, v, acc, m_i, l_i, PV_FP8, SIMULATE)


@triton.jit(do_not_specialize=("q_len", "k_len"))
def _dense_attention_fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,  # float32 [BH, Sq]
    q_scale_ptr,  # float32 [BH, Sq]
    k_scale_ptr,  # float32 [BH, Sk], or one for KEYS_PER_SCALE keys, or [BH] if that is 0
    v_scale_ptr,  # float32 [BH, D]
    v_mean_ptr,  # float32 [BH, D]
    stride_qb,
    stride_qh,
    stride_qs,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_vb,
    stride_vh,
    stride_vs,
    stride_vd,
    stride_ob,
    stride_oh,
    stride_os,
    stride_q_scale,
    stride_k_scale,
    num_heads,
    q_len,
    k_len,
    sm_scale,  # times log2(e)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    QK_INT8: tl.constexpr,
    PV_FP8: tl.constexpr,
    KEYS_PER_SCALE: tl.constexpr,
    HAS_LSE: tl.constexpr,
    TAIL_MASK: tl.constexpr,
    WIDE: tl.constexpr,
    SIMULATE: tl.constexpr,
):
    """Attend ``BLOCK_M`` queries of one head to all keys."""
    pid_bh = tl.program_id(1).to(tl.int64)
    pid_b, pid_h = pid_bh // num_heads, pid_bh % num_heads
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < q_len
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HEAD_DIM
    q_ptr += pid_b * stride_qb + pid_h * stride_qh
    k_ptr += pid_b * stride_kb + pid_h * stride_kh
    v_ptr += pid_b * stride_vb + pid_h * stride_vh
    q_idx = offs_m.to(tl.int64)
    mask_md = mask_m[:, None] & mask_d[None, :]
    q = tl.load(q_ptr + q_idx[:, None] * stride_qs + offs_d, mask_md, 0)
    qk_scale = tl.full([BLOCK_M], sm_scale, tl.float32)
    if QK_INT8:
        qk_scale *= tl.load(q_scale_ptr + pid_bh * stride_q_scale + offs_m, mask_m, 1.0)
        k_scale_ptr += pid_bh * stride_k_scale
        if KEYS_PER_SCALE == 0:
            qk_scale *= tl.load(k_scale_ptr)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m_i = tl.full([BLOCK_M], NO_KEY, tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    if TAIL_MASK:
        # Only the last tile needs a mask.
        k_full = k_len // BLOCK_N * BLOCK_N
        for start_n in tl.range(0, k_full, BLOCK_N):
            acc, m_i, l_i = _attend_to_tile(
                q, qk_scale, start_n, k_ptr, v_ptr, k_scale_ptr, stride_ks, stride_vs, stride_vd,
                k_len, acc, m_i, l_i, HEAD_DIM, BLOCK_D, BLOCK_N, QK_INT8, PV_FP8, KEYS_PER_SCALE,
                False, WIDE, SIMULATE,
            )  # fmt: skip
        if k_full < k_len:
            acc, m_i, l_i = _attend_to_tile(
                q, qk_scale, k_full, k_ptr, v_ptr, k_scale_ptr, stride_ks, stride_vs, stride_vd,
                k_len, acc, m_i, l_i, HEAD_DIM, BLOCK_D, BLOCK_N, QK_INT8, PV_FP8, KEYS_PER_SCALE,
                True, WIDE, SIMULATE,
            )  # fmt: skip
    else:
        for start_n in tl.range(0, k_len, BLOCK_N):
            acc, m_i, l_i = _attend_to_tile(
                q, qk_scale, start_n, k_ptr, v_ptr, k_scale_ptr, stride_ks, stride_vs, stride_vd,
                k_len, acc, m_i, l_i, HEAD_DIM, BLOCK_D, BLOCK_N, QK_INT8, PV_FP8, KEYS_PER_SCALE,
                True, WIDE, SIMULATE,
            )  # fmt: skip
    if PV_FP8:
        v_scale = tl.load(v_scale_ptr + pid_bh * HEAD_DIM + offs_d, mask_d, 0.0)
        v_mean = tl.load(v_mean_ptr + pid_bh * HEAD_DIM + offs_d, mask_d, 0.0)
        acc, l_i = restore_values(acc, l_i, v_scale, v_mean)
    out, lse = online_softmax_end(acc, m_i, l_i)
    tl.store(
        out_ptr + pid_b * stride_ob + pid_h * stride_oh + q_idx[:, None] * stride_os + offs_d,
        out.to(out_ptr.dtype.element_ty),
        mask_md,
    )
    if HAS_LSE:
        tl.store(lse_ptr + pid_bh * q_len + offs_m, lse, mask_m)


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    return_lse: bool,
    quantized: Quantized | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run dense attention in Triton; arguments are checked by the caller.

    Args:
        query, key, value: ``[B, H, S, D]``.
        scale: softmax scale, above 0.
        return_lse: return the log-sum-exp instead of None.
        quantized: quantized inputs that replace the tensors in the products, with transposed values.
        launch: tile shape, from the static table by default.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype, stored as ``[B, Sq, H, D]``; log-sum-exp float32
        ``[B, H, Sq]``.
    """
    inputs = quantized or Quantized(query, key, value)
    dtypes = inputs.query.dtype, inputs.value.dtype
    launch = launch or select_launch("dense", *dtypes, query.shape[-1], compute_capability(query))
    batch, heads, q_len, head_dim = query.shape
    out = query.new_empty(batch, q_len, heads, head_dim).transpose(1, 2)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32) if return_lse else None
    _launch_dense(inputs, out, lse, scale, launch)
    if lse is not None and inputs.lse_shift is not None:
        lse += scale * inputs.lse_shift
    return out, lse


def _launch_dense(
    inputs: Quantized, out: Tensor, lse: Tensor | None, scale: float, launch: Launch
) -> None:
    """Fill out ``[B, H, Sq, D]`` and lse ``[B, H, Sq]`` with the attention of the inputs."""
    q, k = make_last_contiguous(inputs.query), make_last_contiguous(inputs.key)
    batch, heads, q_len, head_dim = q.shape
    is_fp8 = inputs.value.dtype == torch.float8_e4m3fn
    v = inputs.value if is_fp8 else make_last_contiguous(inputs.value)
    # Rows of transposed values are padded to whole tiles.
    assert not is_fp8 or (v.stride(2) == 1 and VALUE_MULTIPLE % launch.block_n == 0)
    _dense_attention_fwd_kernel[(triton.cdiv(q_len, launch.block_m), batch * heads)](
        q,
        k,
        v,
        out,
        lse,
        inputs.query_scale,
        inputs.key_scale,
        inputs.value_scale,
        inputs.value_mean,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:2],
        v.stride(2),
        v.stride(3),
        *out.stride()[:3],
        0 if inputs.query_scale is None else inputs.query_scale.stride(1),
        0 if inputs.key_scale is None else inputs.key_scale.stride(1),
        heads,
        q_len,
        k.shape[2],
        scale * LOG2E.value,
        HEAD_DIM=head_dim,
        BLOCK_D=pad_to_power_of_two(head_dim, 32),
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        QK_INT8=k.dtype == torch.int8,
        PV_FP8=is_fp8,
        KEYS_PER_SCALE=inputs.keys_per_scale,
        HAS_LSE=lse is not None,
        TAIL_MASK=launch.tail_mask,
        WIDE=not launch.narrow_offsets or needs_wide_offsets(k, v),
        SIMULATE=is_interpreted(q),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
