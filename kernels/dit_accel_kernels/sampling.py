"""Attention of a few sampled queries: what methods and the guard learn from without a full pass."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.contracts import HELD_SCORES, BlockMap, group_of_token


def spread_rows(tokens: int, count: int, device: torch.device) -> Tensor:
    """At most ``count`` token indices over the whole sequence, int64 ``[R]``."""
    count = min(count, tokens)
    return (torch.arange(count, device=device) * 2 + 1) * tokens // (2 * count)


def sampled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    scale: float,
    block_map: BlockMap | None = None,
) -> Tensor:
    """Attention of some queries, exact or by a map.

    Args:
        query, key, value: ``[B, H, S, D]``.
        rows: indices of the queries, int64 ``[R]``.
        scale: softmax scale.
        block_map: keys that the query's group does not select are left out.

    Returns:
        float32 ``[B, H, R, D]``; 0 for a query that selects no key.
    """
    pieces = []
    for some in rows.split(_rows_at_once(key)):
        logits = _logits(query, key, some, scale)
        if block_map is not None:
            logits.masked_fill_(~rows_of_map(block_map, some), -torch.inf)
        weights = logits.softmax(-1)
        if block_map is not None:
            weights.nan_to_num_(0.0)
        pieces.append(product_float32(weights.to(value.dtype), value))
    return torch.cat(pieces, 2)


def sampled_importance(query: Tensor, key: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Mean attention weight of each key over some queries, float32 ``[B, H, S]``.

    Args:
        query, key: ``[B, H, S, D]``.
        rows: indices of the queries, int64 ``[R]``.
        scale: softmax scale.
    """
    pieces = rows.split(_rows_at_once(key))
    sums = (_logits(query, key, some, scale).softmax(-1).sum(2) for some in pieces)
    return torch.stack(list(sums)).sum(0) / rows.numel()


def rows_of_map(block_map: BlockMap, rows: Tensor) -> Tensor:
    """The keys that some queries select, bool ``[B, H, R, S]``."""
    group = group_of_token(block_map.query_order, block_map.query_offsets)[:, :, rows]  # [B, H, R]
    key_group = group_of_token(block_map.key_order, block_map.key_offsets)  # [B, H, S]
    width = block_map.selected.shape[-1]
    chosen = block_map.selected.gather(2, group[..., None].expand(*group.shape, width))
    return chosen.gather(3, key_group[:, :, None].expand(*group.shape, key_group.shape[-1]))


def _rows_at_once(key: Tensor) -> int:
    return max(1, HELD_SCORES // (key.shape[0] * key.shape[1] * key.shape[2]))


def _logits(query: Tensor, key: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Scaled scores of some queries, float32 ``[B, H, R, S]``."""
    return product_float32(query[:, :, rows], key.transpose(-1, -2)).mul_(scale)


def product_float32(left: Tensor, right: Tensor) -> Tensor:
    """Product in float32 of ``[B, H, R, N]`` and ``[B, H, N, M]``, batch by batch, so that a strided view is
    not copied; on CUDA neither is a float32 copy made.
    """
    pairs = zip(left, right, strict=True)
    if left.is_cuda and left.dtype != torch.float32:
        return torch.stack([torch.bmm(x, y, out_dtype=torch.float32) for x, y in pairs])
    return torch.stack([torch.bmm(x.float(), y.float()) for x, y in pairs])
