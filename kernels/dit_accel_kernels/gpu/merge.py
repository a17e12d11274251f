"""Merging two attention results over disjoint keys by their log-sum-exps."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_accel_kernels.gpu.launch import padded


@triton.jit
def _merge_kernel(
    first, first_lse, second, second_lse, out, lse, rows, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    channel = tl.arange(0, BLOCK_D)
    inside = row < rows
    both = inside[:, None] & (channel < D)[None, :]
    a = tl.load(first_lse + row, inside, float("-inf"))
    b = tl.load(second_lse + row, inside, float("-inf"))
    top = tl.maximum(a, b)
    safe = tl.where(top == float("-inf"), 0.0, top)
    weight_a, weight_b = tl.exp(a - safe), tl.exp(b - safe)
    total = weight_a + weight_b
    share = tl.where(total > 0, total, 1.0)
    x = tl.load(first + row[:, None] * D + channel, both, 0.0).to(tl.float32)
    y = tl.load(second + row[:, None] * D + channel, both, 0.0).to(tl.float32)
    merged = x * (weight_a / share)[:, None] + y * (weight_b / share)[:, None]
    tl.store(out + row[:, None] * D + channel, merged.to(out.dtype.element_ty), both)
    tl.store(lse + row, tl.where(total > 0, safe + tl.log(share), float("-inf")), inside)


def merge_attention(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Out ``[B, H, S, D]`` and log-sum-exp ``[B, H, S]`` over the union of the keys."""
    first, second = first.contiguous(), second.contiguous()
    out = torch.empty_like(first)
    lse = torch.empty(first_lse.shape, dtype=torch.float32, device=first.device)
    rows, width, block = lse.numel(), first.shape[-1], 32
    _merge_kernel[(triton.cdiv(rows, block),)](
        first,
        first_lse.contiguous(),
        second,
        second_lse.contiguous(),
        out,
        lse,
        rows,
        D=width,
        BLOCK_D=padded(width),
        BLOCK_S=block,
    )
    return out, lse
