"""Estimate the attention mass of blocks from antidiagonals of their scores.

This is the scoring of XAttention (arXiv 2503.16428).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.contracts import MAX_SCORES, ContractError, check_tokens
from dit_accel_kernels.sampling import matmul_float32

if TYPE_CHECKING:
    from torch import Tensor


def antidiagonal_mass(query: Tensor, key: Tensor, block: int, stride: int, scale: float) -> Tensor:
    """Estimate the share of attention that each key block receives from each query block.

    A run of ``stride`` tokens becomes one long vector, in reverse order for queries. One product of two
    such vectors then sums the antidiagonal of a ``stride`` x ``stride`` square of scores. Divided by
    ``stride``, the sum is the logit of the square.

    Args:
        query, key: ``[B, H, S, D]``, any S; the last run is padded with zeros.
        block: tokens of a block, a multiple of ``stride``.
        stride: side of the squares.
        scale: softmax scale.

    Returns:
        float32 ``[B, H, G, G]`` with ``G = ceil(S / block)``; rows sum to 1.

    Raises:
        ContractError: if ``block`` is not a multiple of ``stride``, or a tensor does not fit.
    """
    check_tokens("query", query)
    check_tokens("key", key)
    if stride < 1 or block < 1 or block % stride:
        raise ContractError("block", f"a multiple of stride {stride}", block)
    tokens = query.shape[2]
    num_blocks, num_runs = -(-tokens // block), -(-tokens // stride)
    queries = _concatenate_runs(query, num_blocks * block, stride, reverse=True)  # [B, H, R, s D]
    keys = _concatenate_runs(key, num_blocks * block, stride, reverse=False).transpose(-1, -2)
    per_block = block // stride
    is_real = torch.arange(num_blocks * per_block, device=query.device) < num_runs  # [R]
    chunk = max(1, MAX_SCORES // (keys.shape[0] * keys.shape[1] * keys.shape[-1] * per_block))
    masses = []
    for run_queries, run_is_real in zip(
        queries.split(chunk * per_block, dim=2), is_real.split(chunk * per_block), strict=True
    ):
        logits = matmul_float32(run_queries, keys).mul_(scale / stride)
        weights = logits.masked_fill_(~is_real, -torch.inf).softmax(-1)
        mass = weights.unflatten(-1, (num_blocks, per_block)).sum(-1) * run_is_real[:, None]
        masses.append(mass.unflatten(2, (-1, per_block)).sum(3))  # [B, H, blocks of the chunk, G]
    runs_in_block = is_real.view(num_blocks, per_block).sum(1)
    return torch.cat(masses, 2) / runs_in_block[:, None]


def _concatenate_runs(tokens: Tensor, length: int, stride: int, *, reverse: bool) -> Tensor:
    """Return runs of ``stride`` tokens as one vector each, ``[B, H, length / stride, stride D]``."""
    padded = torch.nn.functional.pad(tokens, (0, 0, 0, length - tokens.shape[2]))
    runs: Tensor = padded.unflatten(2, (-1, stride))  # [B, H, R, stride, D]
    return (runs.flip(3) if reverse else runs).flatten(3)
