"""Attention mass of blocks from the antidiagonals of their scores: XAttention (arXiv 2503.16428)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from dit_accel_kernels.contracts import HELD_SCORES, ContractError, check_tokens
from dit_accel_kernels.sampling import product_float32


def antidiagonal_mass(query: Tensor, key: Tensor, block: int, stride: int, scale: float) -> Tensor:
    """Estimated share of attention of each key block, from each query block.

    Queries ``s - 1 - r`` and keys ``r`` of a run of ``stride`` tokens stand side by side as one long
    vector, so that one product is the sum of a ``stride`` x ``stride`` square's antidiagonal; divided
    by ``stride`` it is the logit of the square.

    Args:
        query, key: ``[B, H, S, D]``, any S; a run that the sequence does not fill is padded with zeros.
        block: tokens of a block, a multiple of ``stride``.
        stride: side of the squares.
        scale: softmax scale.

    Returns:
        float32 ``[B, H, G, G]`` with ``G = ceil(S / block)``; rows sum to 1.

    Raises:
        ContractError: for a block that is not a multiple of the stride.
    """
    check_tokens("query", query)
    check_tokens("key", key)
    if stride < 1 or block < 1 or block % stride:
        raise ContractError("block", f"a multiple of stride {stride}", block)
    tokens = query.shape[2]
    blocks, runs = -(-tokens // block), -(-tokens // stride)
    queries = _strided(query, blocks * block, stride, reverse=True)  # [B, H, runs padded, s D]
    keys = _strided(key, blocks * block, stride, reverse=False).transpose(-1, -2)
    per_block = block // stride
    real = torch.arange(blocks * per_block, device=query.device) < runs
    rows = max(1, HELD_SCORES // (keys.shape[0] * keys.shape[1] * keys.shape[-1] * per_block))
    pieces = []
    for piece, counted in zip(
        queries.split(rows * per_block, dim=2), real.split(rows * per_block), strict=True
    ):
        logits = product_float32(piece, keys).mul_(scale / stride)
        weights = logits.masked_fill_(~real, -torch.inf).softmax(-1)
        mass = weights.unflatten(-1, (blocks, per_block)).sum(-1) * counted[:, None]
        pieces.append(mass.unflatten(2, (-1, per_block)).sum(3))  # [B, H, R, G]
    return torch.cat(pieces, 2) / real.view(blocks, per_block).sum(1)[:, None]


def _strided(tokens: Tensor, length: int, stride: int, reverse: bool) -> Tensor:
    """Runs of ``stride`` tokens as one vector each, ``[B, H, length / stride, stride D]``."""
    runs = pad(tokens, (0, 0, 0, length - tokens.shape[2])).unflatten(2, (-1, stride))
    return (runs.flip(3) if reverse else runs).flatten(3)
