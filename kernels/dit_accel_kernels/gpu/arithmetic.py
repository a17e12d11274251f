"""What the attention kernels share: products, rounding to e4m3, and one step of the online softmax."""

from __future__ import annotations

import triton
import triton.language as tl

# log2 of e4m3's largest value: weights are scaled by 448, the row sum carries the same factor.
E4M3_SHIFT = tl.constexpr(8.807354922057604)
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(a, b, SIMULATE: tl.constexpr):
    """``a @ b`` with float32 (or, of int8, int32) sums."""
    if a.dtype == tl.int8:
        product = tl.dot(a, b)
    elif SIMULATE:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        product = tl.dot(a, b, input_precision="ieee")
    return product


@triton.jit
def rounded_e4m3(x):
    """Nearest e4m3 value of 0 <= x <= 448 in float32: what a cast does where casts are right."""
    exponent = tl.floor(tl.log2(tl.maximum(x, 0.015625)))
    step = tl.exp2(exponent - 3)
    magic = 12582912.0  # 1.5 * 2**23: adding and subtracting it rounds half to even
    return ((x / step + magic) - magic) * step


@triton.jit
def softmax_step(
    scores, factor, value, acc, peak, total, PV_FP8: tl.constexpr, SIMULATE: tl.constexpr
):
    """One tile of keys of the online softmax, base 2.

    scores: float32 [M, N], -inf where there is no key; factor: float32 [M], what turns scores into
    exponents of two; acc: float32 [M, D]; peak, total: float32 [M], the largest score and the sum of
    weights so far.
    """
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    shift = new_peak * factor
    if PV_FP8:
        shift -= E4M3_SHIFT
    weights = tl.exp2(scores * factor[:, None] - shift[:, None])
    keep = tl.exp2((peak - new_peak) * factor)
    total = total * keep + tl.sum(weights, 1)
    if PV_FP8 and SIMULATE:
        weights = rounded_e4m3(weights)
    elif not SIMULATE:
        weights = weights.to(value.dtype)
    acc = acc * keep[:, None] + dot(weights, value, SIMULATE)
    return acc, new_peak, total


@triton.jit
def softmax_end(factor, acc, peak, total, PV_FP8: tl.constexpr):
    """Normalised output and natural-log log-sum-exp; a row without any key gets 0 and -inf."""
    some = total > 0
    out = acc / tl.where(some, total, 1.0)[:, None]
    log_total = tl.log2(tl.where(some, total, 1.0))
    if PV_FP8:
        log_total -= E4M3_SHIFT
    lse = tl.where(some, (tl.where(some, peak, 0.0) * factor + log_total) * LN2, float("-inf"))
    return out, lse
