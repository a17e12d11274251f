"""Hold the arithmetic that the attention kernels share: products, e4m3 rounding, online softmax.

The online softmax is that of FlashAttention-2 (arXiv 2307.08691, algorithm 1), in base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Weights are scaled by 448, the largest e4m3 value, and the row sum carries this factor.
E4M3_LARGEST = tl.constexpr(448.0)
E4M3_SHIFT = tl.constexpr(8.807354922057604)  # log2(448)
# The largest exponent of a row without keys. It is finite, so a tile without keys gives weights of 0.
NO_KEY = tl.constexpr(-1e30)
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(a, b, SIMULATE: tl.constexpr):
    """Return ``a @ b`` with float32 sums, or int32 sums of int8 inputs."""
    if a.dtype == tl.int8:
        product = tl.dot(a, b)
    elif SIMULATE:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        product = tl.dot(a, b, input_precision="ieee")
    return product


@triton.jit
def round_e4m3(x):
    """Round float32 values between 0 and 448 to the nearest e4m3 value.

    The interpreter needs this because its own cast to e4m3 is wrong.
    """
    exponent = tl.floor(tl.log2(tl.maximum(x, 0.015625)))
    step = tl.exp2(exponent - 3)
    # 1.5 * 2**23: adding and then subtracting it rounds half to even.
    magic = 12582912.0
    return ((x / step + magic) - magic) * step


@triton.jit
def load_rows(
    x_ptr, row_offsets, mask, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):
    """Load rows ``[N, BLOCK_D]``; only a ``MASKED`` load reads the mask ``[N]``."""
    offs_d = tl.arange(0, BLOCK_D)
    ptrs = x_ptr + (row_offsets[:, None] + offs_d)
    mask_d = (offs_d < HEAD_DIM)[None, :]
    if MASKED and HEAD_DIM < BLOCK_D:
        x = tl.load(ptrs, mask[:, None] & mask_d, 0.0)
    elif MASKED:
        x = tl.load(ptrs, mask[:, None], 0.0)
    elif HEAD_DIM < BLOCK_D:
        x = tl.load(ptrs, mask_d, 0.0)
    else:
        x = tl.load(ptrs)
    return x


@triton.jit
def online_softmax_step(
    qk, qk_scale, v, acc, m_i, l_i, PV_FP8: tl.constexpr, SIMULATE: tl.constexpr
):
    """Update the online softmax with one tile of keys.

    Args:
        qk: float32 ``[M, N]``, -inf where there is no key.
        qk_scale: float32 ``[M]``, the factor from a score to an exponent of two.
        v: ``[N, D]``.
        acc: float32 ``[M, D]``, the weighted sum of values so far.
        m_i: float32 ``[M]``, the largest exponent of two so far.
        l_i: float32 ``[M]``, the sum of weights so far.

    Returns:
        the new acc, m_i and l_i.
    """
    m_new = tl.maximum(m_i, tl.max(qk, 1) * qk_scale)
    shift = m_new
    if PV_FP8:
        shift -= E4M3_SHIFT
    p = tl.exp2(qk * qk_scale[:, None] - shift[:, None])  # [M, N]
    alpha = tl.exp2(m_i - m_new)
    l_i = l_i * alpha + tl.sum(p, 1)
    if PV_FP8 and SIMULATE:
        p = round_e4m3(p)
    elif not SIMULATE:
        p = p.to(v.dtype)
    acc = acc * alpha[:, None] + dot(p, v, SIMULATE)
    return acc, m_new, l_i


@triton.jit
def restore_values(acc, l_i, v_scale, v_mean):
    """Undo the scales of e4m3 weights and values, and add the mean of the values.

    Args:
        acc: float32 ``[M, D]``.
        l_i: float32 ``[M]``.
        v_scale, v_mean: float32 ``[D]``.

    Returns:
        acc and l_i as plain weights and values would give them.
    """
    l_i = l_i * (1.0 / E4M3_LARGEST)
    acc = acc * (v_scale * (1.0 / E4M3_LARGEST))[None, :] + l_i[:, None] * v_mean[None, :]
    return acc, l_i


@triton.jit
def online_softmax_end(acc, m_i, l_i):
    """Return the normalised output and the natural-log log-sum-exp.

    A row without any key gets 0 and -inf.
    """
    has_key = l_i > 0
    divisor = tl.where(has_key, l_i, 1.0)
    lse = tl.where(has_key, (m_i + tl.log2(divisor)) * LN2, float("-inf"))
    return acc / divisor[:, None], lse
