"""A stable counting sort of labels, without atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 128


@triton.jit
def _count_kernel(labels, rank, counts, tokens, count, chunks, CHUNK: tl.constexpr):
    """Rank of each token among the tokens of its label in its chunk, and how many a chunk has."""
    at = tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(0)
    lane = tl.arange(0, CHUNK)
    place = chunk * CHUNK + lane
    inside = place < tokens
    label = tl.load(labels + at * tokens + place, inside, -1).to(tl.int32)
    other = tl.load(labels + at * tokens + place, inside, -2).to(tl.int32)
    same = label[:, None] == other[None, :]
    before = tl.sum((same & (lane[None, :] < lane[:, None])).to(tl.int32), 1)
    every = tl.sum(same.to(tl.int32), 1)
    tl.store(rank + at * tokens + place, before, inside)
    target = counts + (at * count + label) * chunks + chunk
    tl.store(target, every, inside & (before == 0))


@triton.jit
def _scatter_kernel(labels, rank, starts, order, tokens, count, chunks, CHUNK: tl.constexpr):
    at = tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(0)
    place = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = place < tokens
    label = tl.load(labels + at * tokens + place, inside, 0)
    start = tl.load(starts + (at * count + label) * chunks + chunk, inside, 0)
    target = start + tl.load(rank + at * tokens + place, inside, 0)
    tl.store(order + at * tokens + target, place.to(tl.int64), inside)


def group_by_label(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Order int64 ``[B, H, S]`` and offsets int64 ``[B, H, G + 1]``; tokens of a group ascend."""
    labels = labels.contiguous()
    batch, heads, tokens = labels.shape
    chunks = triton.cdiv(tokens, CHUNK)
    rank = torch.empty(labels.shape, dtype=torch.int32, device=labels.device)
    counts = torch.zeros(batch, heads, count * chunks, dtype=torch.int32, device=labels.device)
    order = torch.empty(labels.shape, dtype=torch.int64, device=labels.device)
    grid = (chunks, batch * heads)
    _count_kernel[grid](labels, rank, counts, tokens, count, chunks, CHUNK=CHUNK)
    ends = counts.cumsum(-1, dtype=torch.int32)
    _scatter_kernel[grid](labels, rank, ends - counts, order, tokens, count, chunks, CHUNK=CHUNK)
    offsets = torch.zeros(batch, heads, count + 1, dtype=torch.int64, device=labels.device)
    offsets[..., 1:] = ends[..., chunks - 1 :: chunks]
    return order, offsets
