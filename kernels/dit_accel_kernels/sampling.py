"""Compute the attention of a few sampled queries.

Methods and the guard use it where a full pass would cost too much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.contracts import MAX_SCORES, BlockMap, check_no_gradient, label_tokens

if TYPE_CHECKING:
    from torch import Tensor


def spread_rows(tokens: int, count: int, device: torch.device) -> Tensor:
    """Return at most ``count`` token indices at even distances over a sequence, int64 ``[R]``.

    Args:
        tokens: length of the sequence.
        count: number of indices, at most ``tokens`` of which are returned.
        device: device of the result.
    """
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
    """Compute the attention of some queries, exact or restricted to a block map.

    Args:
        query, key, value: ``[B, H, S, D]``.
        rows: indices of the queries, int64 ``[R]``.
        scale: softmax scale.
        block_map: restricts each query to the keys that its group selects.

    Returns:
        float32 ``[B, H, R, D]``; 0 for a query that selects no key.

    Raises:
        ContractError: if a tensor requires a gradient.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_no_gradient(name, tensor)
    outs = []
    for chunk in rows.split(_rows_per_chunk(key)):
        logits = _compute_logits(query, key, chunk, scale)
        if block_map is not None:
            logits.masked_fill_(~gather_selected_keys(block_map, chunk), -torch.inf)
        weights = logits.softmax(-1)
        if block_map is not None:
            weights.nan_to_num_(0.0)
        outs.append(matmul_float32(weights.to(value.dtype), value))
    return torch.cat(outs, 2)


def sampled_importance(query: Tensor, key: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Compute the mean attention weight of each key over some queries.

    Args:
        query, key: ``[B, H, S, D]``.
        rows: indices of the queries, int64 ``[R]``.
        scale: softmax scale.

    Returns:
        float32 ``[B, H, S]``; each head sums to 1.

    Raises:
        ContractError: if a tensor requires a gradient.
    """
    check_no_gradient("query", query)
    check_no_gradient("key", key)
    chunks = rows.split(_rows_per_chunk(key))
    sums = [_compute_logits(query, key, chunk, scale).softmax(-1).sum(2) for chunk in chunks]
    return torch.stack(sums).sum(0) / rows.numel()


def gather_selected_keys(block_map: BlockMap, rows: Tensor) -> Tensor:
    """Return the keys that some queries select, bool ``[B, H, R, S]``.

    Args:
        block_map: a map over S queries and S keys.
        rows: indices of the queries, int64 ``[R]``.
    """
    row_labels = label_tokens(block_map.query_order, block_map.query_offsets)[:, :, rows]
    key_labels = label_tokens(block_map.key_order, block_map.key_offsets)  # [B, H, S]
    num_key_groups = block_map.selected.shape[-1]
    group_index = row_labels[..., None].expand(*row_labels.shape, num_key_groups)
    key_index = key_labels[:, :, None].expand(*row_labels.shape, key_labels.shape[-1])
    return block_map.selected.gather(2, group_index).gather(3, key_index)


def _rows_per_chunk(key: Tensor) -> int:
    """Return how many query rows have about MAX_SCORES scores over batch and heads."""
    return max(1, MAX_SCORES // (key.shape[0] * key.shape[1] * key.shape[2]))


def _compute_logits(query: Tensor, key: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Compute the scaled scores of some queries, float32 ``[B, H, R, S]``."""
    return matmul_float32(query[:, :, rows], key.transpose(-1, -2)).mul_(scale)


def matmul_float32(left: Tensor, right: Tensor) -> Tensor:
    """Multiply ``[B, H, R, N]`` by ``[B, H, N, M]`` with a float32 result.

    The product runs batch by batch, so a strided view is not copied. On CUDA no float32 copy of a
    16-bit input is made.
    """
    pairs = zip(left, right, strict=True)
    if left.is_cuda and left.dtype != torch.float32:
        return torch.stack([torch.bmm(x, y, out_dtype=torch.float32) for x, y in pairs])
    return torch.stack([torch.bmm(x.float(), y.float()) for x, y in pairs])
