"""Attention of a few sampled queries: what methods and the guard learn from without a full pass."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.contracts import BlockMap, group_of_token


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
    logits = scale * _product(query[:, :, rows], key.transpose(-1, -2))  # [B, H, R, S]
    if block_map is not None:
        logits = logits.masked_fill(~rows_of_map(block_map, rows), -torch.inf)
        weights = logits.softmax(-1).nan_to_num(0.0)
    else:
        weights = logits.softmax(-1)
    return _product(weights.to(value.dtype), value)


def sampled_importance(query: Tensor, key: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Mean attention weight of each key over some queries, float32 ``[B, H, S]``.

    Args:
        query, key: ``[B, H, S, D]``.
        rows: indices of the queries, int64 ``[R]``.
        scale: softmax scale.
    """
    logits = scale * _product(query[:, :, rows], key.transpose(-1, -2))
    return logits.softmax(-1).mean(2)


def rows_of_map(block_map: BlockMap, rows: Tensor) -> Tensor:
    """The keys that some queries select, bool ``[B, H, R, S]``."""
    group = group_of_token(block_map.query_order, block_map.query_offsets)[:, :, rows]  # [B, H, R]
    key_group = group_of_token(block_map.key_order, block_map.key_offsets)  # [B, H, S]
    width = block_map.selected.shape[-1]
    chosen = block_map.selected.gather(2, group[..., None].expand(*group.shape, width))
    return chosen.gather(3, key_group[:, :, None].expand(*group.shape, key_group.shape[-1]))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Product in float32 of ``[B, H, R, N]`` and ``[B, H, N, M]``; on CUDA no float32 copy of the right one
    is made.
    """
    if left.is_cuda and left.dtype != torch.float32:
        product = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)
        return product.unflatten(0, left.shape[:2])
    return left.float() @ right.float()
