"""Dense attention with log-sum-exp, in full precision or quantized."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_accel_kernels.gpu.arithmetic import LOG2E, dot, softmax_end, softmax_step
from dit_accel_kernels.gpu.launch import (
    Launch,
    attention_launch,
    capability,
    interpreted,
    last_contiguous,
    padded,
)
from dit_accel_kernels.gpu.quantize import Quantized


@triton.jit
def _dense_attention_kernel(
    query,
    key,
    value,
    out,
    lse,
    query_scale,
    key_scale,
    value_scale,
    value_mean,
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
    heads,
    query_tokens,
    key_tokens,
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
    at = tl.program_id(1).to(tl.int64)
    batch, head = at // heads, at % heads
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < query_tokens
    channel = tl.arange(0, BLOCK_D)
    real = channel < D
    query += batch * stride_qb + head * stride_qh
    key += batch * stride_kb + head * stride_kh
    value += batch * stride_vb + head * stride_vh
    place = row.to(tl.int64)
    q = tl.load(query + place[:, None] * stride_qs + channel, inside[:, None] & real[None, :], 0)
    factor = tl.full([BLOCK_M], scale, tl.float32)  # already times log2(e)
    if QK_INT8:
        factor *= tl.load(query_scale + at * query_tokens + row, inside, 0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in tl.range(0, key_tokens, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        live = column < key_tokens
        token = column.to(tl.int64)
        both = live[:, None] & real[None, :]
        k = tl.load(key + token[:, None] * stride_ks + channel, both, 0)
        if PV_FP8:  # transposed: what the matrix unit wants of 8-bit values
            v = tl.load(
                value + channel.to(tl.int64)[:, None] * stride_vd + token[None, :],
                real[:, None],  # zero, not absent, beyond the last token
                0.0,
            )
            v = tl.trans(v)
        else:
            v = tl.load(value + token[:, None] * stride_vs + channel, both, 0.0)
        scores = dot(q, tl.trans(k), SIMULATE).to(tl.float32)  # [M, N]
        if QK_INT8:
            scores *= tl.load(key_scale + at * key_tokens + token, live, 0.0)[None, :]
        scores = tl.where(live[None, :], scores, float("-inf"))
        acc, peak, total = softmax_step(scores, factor, v, acc, peak, total, PV_FP8, SIMULATE)
    result, row_lse = softmax_end(factor, acc, peak, total, PV_FP8)
    if PV_FP8:
        result = result * tl.load(value_scale + at * D + channel, real, 0.0)[None, :]
        result += tl.load(value_mean + at * D + channel, real, 0.0)[None, :]
    tl.store(
        out + (at * query_tokens + place)[:, None] * D + channel,
        result.to(out.dtype.element_ty),
        inside[:, None] & real[None, :],
    )
    if HAS_LSE:
        tl.store(lse + at * query_tokens + row, row_lse, inside)


def transposed(value: Tensor, block: int) -> Tensor:
    """``[B, H, D, S']`` of ``[B, H, S, D]``, S' rounded up to whole tiles and zero there: rows that begin
    at multiples of 16 bytes load in wide steps.
    """
    batch, heads, tokens, width = value.shape
    whole = triton.cdiv(tokens, block) * block
    out = torch.zeros(batch, heads, width, whole, dtype=value.dtype, device=value.device)
    out[..., :tokens] = value.transpose(2, 3)
    return out


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    return_lse: bool,
    *,
    quantized: Quantized | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of ``[B, H, S, D]`` tensors; ``quantized`` stands for them in the products."""
    given = quantized or Quantized(query, key, value)
    launch = launch or attention_launch(
        "dense", given.query.dtype, given.value.dtype, query.shape[-1], capability(query)
    )
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32) if return_lse else None
    batch, heads, tokens, width = query.shape
    q, k, v = (last_contiguous(x) for x in (given.query, given.key, given.value))
    fp8 = v.dtype == torch.float8_e4m3fn
    if fp8:
        v = transposed(v, launch.block_n)
    _dense_attention_kernel[(triton.cdiv(tokens, launch.block_m), batch * heads)](
        q,
        k,
        v,
        out,
        lse,
        given.query_scale,
        given.key_scale,
        given.value_scale,
        given.value_mean,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:2],
        1 if fp8 else v.stride(2),
        v.stride(2) if fp8 else 1,
        heads,
        tokens,
        key.shape[2],
        scale * LOG2E.value,
        D=width,
        BLOCK_D=padded(width, 32),
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        QK_INT8=k.dtype == torch.int8,
        PV_FP8=fp8,
        HAS_LSE=lse is not None,
        SIMULATE=interpreted(query),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    if lse is not None and given.lse_shift is not None:
        lse += scale * given.lse_shift
    return out, lse
