"""Merge two attention results over disjoint keys by their log-sum-exps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from dit_accel_kernels.gpu.launch import pad_to_power_of_two

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_M = 32


@triton.jit(do_not_specialize=("num_rows",))
def _merge_attention_kernel(
    first_ptr,  # [R, D]
    first_lse_ptr,  # float32 [R]
    second_ptr,
    second_lse_ptr,
    out_ptr,
    lse_ptr,
    num_rows,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Merge ``BLOCK_M`` rows."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    mask_m = offs_m < num_rows
    mask_md = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]
    offs_md = offs_m[:, None] * HEAD_DIM + offs_d
    first_lse = tl.load(first_lse_ptr + offs_m, mask_m, float("-inf"))
    second_lse = tl.load(second_lse_ptr + offs_m, mask_m, float("-inf"))
    m_i = tl.maximum(first_lse, second_lse)
    m_i = tl.where(m_i == float("-inf"), 0.0, m_i)
    first_p, second_p = tl.exp(first_lse - m_i), tl.exp(second_lse - m_i)
    l_i = first_p + second_p
    divisor = tl.where(l_i > 0, l_i, 1.0)
    first = tl.load(first_ptr + offs_md, mask_md, 0.0).to(tl.float32)
    second = tl.load(second_ptr + offs_md, mask_md, 0.0).to(tl.float32)
    out = first * (first_p / divisor)[:, None] + second * (second_p / divisor)[:, None]
    tl.store(out_ptr + offs_md, out.to(out_ptr.dtype.element_ty), mask_md)
    tl.store(lse_ptr + offs_m, tl.where(l_i > 0, m_i + tl.log(divisor), float("-inf")), mask_m)


def merge_attention(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `dit_accel_kernels.merge_attention` in Triton; arguments are checked there.

    Returns:
        out ``[B, H, S, D]`` and log-sum-exp float32 ``[B, H, S]`` over the union of the keys.
    """
    first, second = first.contiguous(), second.contiguous()
    out = torch.empty_like(first)
    lse = torch.empty(first_lse.shape, dtype=torch.float32, device=first.device)
    num_rows, head_dim = lse.numel(), first.shape[-1]
    _merge_attention_kernel[(triton.cdiv(num_rows, BLOCK_M),)](
        first,
        first_lse.contiguous(),
        second,
        second_lse.contiguous(),
        out,
        lse,
        num_rows,
        HEAD_DIM=head_dim,
        BLOCK_D=pad_to_power_of_two(head_dim),
        BLOCK_M=BLOCK_M,
    )
    return out, lse
