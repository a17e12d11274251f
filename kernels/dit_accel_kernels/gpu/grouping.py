"""Group tokens by label with a stable counting sort that needs no atomics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 128


@triton.jit(do_not_specialize=("seq_len", "num_groups", "num_chunks"))
def _count_labels_kernel(
    labels_ptr,  # integer [BH, S]
    ranks_ptr,  # int32 [BH, S]
    counts_ptr,  # int32 [BH, num_chunks, G]
    seq_len,
    num_groups,
    num_chunks,
    CHUNK: tl.constexpr,
):
    """Rank each token among the tokens of its label in its chunk, and count them per chunk."""
    pid_bh = tl.program_id(1).to(tl.int64)
    pid_s = tl.program_id(0)
    lane = tl.arange(0, CHUNK)
    offs_s = pid_s * CHUNK + lane
    mask_s = offs_s < seq_len
    label = tl.load(labels_ptr + pid_bh * seq_len + offs_s, mask_s, -1).to(tl.int32)
    # Another fill value keeps lanes beyond the sequence from matching each other.
    other = tl.load(labels_ptr + pid_bh * seq_len + offs_s, mask_s, -2).to(tl.int32)
    same = label[:, None] == other[None, :]
    rank = tl.sum((same & (lane[None, :] < lane[:, None])).to(tl.int32), 1)
    count = tl.sum(same.to(tl.int32), 1)
    tl.store(ranks_ptr + pid_bh * seq_len + offs_s, rank, mask_s)
    target = counts_ptr + (pid_bh * num_chunks + pid_s) * num_groups + label
    tl.store(target, count, mask_s & (rank == 0))


@triton.jit(do_not_specialize=("seq_len", "num_groups", "num_chunks"))
def _scatter_tokens_kernel(
    labels_ptr,  # integer [BH, S]
    ranks_ptr,  # int32 [BH, S]
    before_ptr,  # int32 [BH, num_chunks, G], tokens of a label in earlier chunks
    offsets_ptr,  # int64 [BH, G + 1]
    order_ptr,  # int64 [BH, S]
    seq_len,
    num_groups,
    num_chunks,
    CHUNK: tl.constexpr,
):
    """Write each token index to its position in the order."""
    pid_bh = tl.program_id(1).to(tl.int64)
    pid_s = tl.program_id(0)
    offs_s = pid_s * CHUNK + tl.arange(0, CHUNK)
    mask_s = offs_s < seq_len
    label = tl.load(labels_ptr + pid_bh * seq_len + offs_s, mask_s, 0)
    start = tl.load(offsets_ptr + pid_bh * (num_groups + 1) + label, mask_s, 0)
    start += tl.load(before_ptr + (pid_bh * num_chunks + pid_s) * num_groups + label, mask_s, 0)
    position = start + tl.load(ranks_ptr + pid_bh * seq_len + offs_s, mask_s, 0)
    tl.store(order_ptr + pid_bh * seq_len + position, offs_s.to(tl.int64), mask_s)


def group_by_label(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Run `dit_accel_kernels.group_by_label` in Triton.

    Args:
        labels: integer ``[B, H, S]`` in ``0 .. count - 1``.
        count: number of groups G.

    Returns:
        order int64 ``[B, H, S]`` and offsets int64 ``[B, H, G + 1]``; the tokens of a group ascend.
    """
    labels = labels.contiguous()
    batch, heads, seq_len = labels.shape
    num_chunks = triton.cdiv(seq_len, CHUNK)
    ranks = torch.empty(labels.shape, dtype=torch.int32, device=labels.device)
    counts = torch.zeros(batch, heads, num_chunks, count, dtype=torch.int32, device=labels.device)
    order = torch.empty(labels.shape, dtype=torch.int64, device=labels.device)
    grid, sizes = (num_chunks, batch * heads), (seq_len, count, num_chunks)
    _count_labels_kernel[grid](labels, ranks, counts, *sizes, CHUNK=CHUNK)
    # A scan over chunks runs in parallel over groups.
    ends = counts.cumsum(2, dtype=torch.int32)
    offsets = torch.zeros(batch, heads, count + 1, dtype=torch.int64, device=labels.device)
    torch.cumsum(ends[:, :, -1], -1, out=offsets[..., 1:])
    _scatter_tokens_kernel[grid](labels, ranks, ends - counts, offsets, order, *sizes, CHUNK=CHUNK)
    return order, offsets
