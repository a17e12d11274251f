"""Attend to what stands for the key groups that a map skips, by plain products on a CPU: the second of two passes.

A query q gives a key group one logit and one value. For ``"expansion"``, attention of the mean query m of
q's group within the key group is computed exactly: its log-sum-exp L, its weighted mean key and its
weighted mean value. The logit is ``L + scale (q - m) . mean key``, the first two terms of the Taylor series
of the log-sum-exp in q. For ``"centroid"`` the series is that about m = 0: the means are plain ones, and L
is ``ln n`` for n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from dit_accel_kernels.attention import rows_per_chunk
from dit_accel_kernels.contracts import MAX_SCORES, BlockMap, label_tokens
from dit_accel_kernels.cpu.expansion import MAX_EXCESS
from dit_accel_kernels.kmeans import group_means

if TYPE_CHECKING:
    from torch import Tensor

Skipped = Literal["centroid", "expansion"]
# The number of tokens in a piece of a group is a multiple of this.
PIECE_MULTIPLE = 16


class Expansion(NamedTuple):
    """Key groups as each query group's mean query sees them.

    Attributes:
        bias: ``L - scale m . mean key``, float32 ``[B, H, Gk, Gq]``; -inf for an empty key group.
        means: Weighted mean keys and values, float32 ``[B, H, Gk, Gq, 2 D]``.
    """

    bias: Tensor
    means: Tensor


@dataclass(frozen=True)
class Pieces:
    """Groups of tokens, cut into P pieces of at most R tokens.

    Attributes:
        tokens: Token indices, int64 ``[B, H, P, R]``. Padding repeats any token.
        mask: False for padding, bool ``[B, H, P, R]``.
        group: Group of each piece, int64 ``[B, H, P]``; any group for an unused piece.
    """

    tokens: Tensor
    mask: Tensor
    group: Tensor

    @classmethod
    def cut(cls, order: Tensor, offsets: Tensor) -> Pieces:
        """Cut groups into pieces that hold a group of average size.

        Args:
            order, offsets: Groups, as in `BlockMap`.
        """
        num_tokens, num_groups = order.shape[-1], offsets.shape[-1] - 1
        rows = -(-num_tokens // (num_groups * PIECE_MULTIPLE)) * PIECE_MULTIPLE
        counts = (offsets.diff(dim=-1) + rows - 1) // rows  # [B, H, G]
        ends = counts.cumsum(-1)
        capacity = int(ends[..., -1].max())
        piece = torch.arange(capacity, device=order.device).expand(*order.shape[:2], capacity)
        group = torch.searchsorted(ends, piece.contiguous(), right=True)
        is_used = group < num_groups
        group = group.clamp(max=num_groups - 1)
        rank = piece - (ends - counts).gather(-1, group)  # number of the piece within its group
        first = offsets.gather(-1, group) + rank * rows
        position = first[..., None] + torch.arange(rows, device=order.device)  # [B, H, P, R]
        mask = (position < offsets.gather(-1, group + 1)[..., None]) & is_used[..., None]
        tokens = order.gather(-1, position.clamp(max=num_tokens - 1).flatten(2))
        return cls(tokens.view_as(position), mask, group)

    def gather(self, x: Tensor) -> Tensor:
        """Return the rows of ``[B, H, S, D]`` tokens, ``[B, H, P, R, D]``."""
        return _take_rows(x, self.tokens)


def attend_to_skipped(
    query: Tensor, key: Tensor, value: Tensor, block_map: BlockMap, scale: float, skipped: Skipped
) -> tuple[Tensor, Tensor]:
    """Attend to what stands for the skipped key groups, and to nothing else.

    Args:
        query: ``[B, H, Sq, D]``.
        key, value: ``[B, H, Sk, D]``.
        block_map: groups of queries and keys, and which are selected.
        scale: softmax scale above 0.
        skipped: what stands for a group, as in `sparse_attention`.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype; log-sum-exp float32 ``[B, H, Sq]``. A query that
        skips no group gets 0 and -inf.
    """
    if skipped == "centroid":
        return _attend_to_centroids(query, key, value, block_map, scale)
    outs, lses = [], []
    for heads in _split_heads(query, key, block_map):
        q, k, v = (x.index_select(1, heads) for x in (query, key, value))
        out, lse = _attend_heads(q, k, v, block_map.select_heads(heads), scale)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, 1), torch.cat(lses, 1)


def _attend_to_centroids(
    query: Tensor, key: Tensor, value: Tensor, block_map: BlockMap, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the result of `attend_to_skipped` for centroids."""
    groups = (block_map.key_order, block_map.key_offsets)
    centroids = (group_means(key, *groups), group_means(value, *groups))
    keys, values = centroids[0].transpose(-1, -2), centroids[1]
    log_size = block_map.key_offsets.diff(dim=-1).float().log()[:, :, None]
    bias = torch.where(block_map.selected, -torch.inf, log_size)  # [B, H, Gq, Gk]
    labels = label_tokens(block_map.query_order, block_map.query_offsets)
    outs, lses = [], []
    for start in range(0, query.shape[2], rows_per_chunk(values.shape[2])):
        rows = slice(start, start + rows_per_chunk(values.shape[2]))
        scores = _take_rows(bias, labels[:, :, rows]) + scale * query[:, :, rows].float() @ keys
        out, lse = _softmax_product(scores, values)
        outs.append(out.to(query.dtype))
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _softmax_product(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention of scores ``[..., R, N]`` to values, and its log-sum-exp ``[..., R]``."""
    weights = scores.softmax(-1).nan_to_num_(0.0)  # a row that skips no group has no weights
    # The largest weight is exp(largest score - log-sum-exp).
    lse = scores.amax(-1) - weights.amax(-1).log().nan_to_num_(neginf=0.0)
    return _product(weights, values), lse


def _split_heads(query: Tensor, key: Tensor, block_map: BlockMap) -> tuple[Tensor, ...]:
    """Return the indices of as many heads at a time as fit in memory."""
    batch, heads, _, head_dim = query.shape
    _, _, query_groups, key_groups = block_map.selected.shape
    # There are up to two pieces for each group, and two copies of the means.
    numbers = max(8 * query_groups * key_groups * head_dim, 4 * query_groups * key.shape[2])
    step = max(1, MAX_SCORES // (numbers * batch))
    return tuple(torch.arange(heads, device=query.device).split(step))


def _attend_heads(
    query: Tensor, key: Tensor, value: Tensor, block_map: BlockMap, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the result of `attend_to_skipped` for expansions of a few heads."""
    bias, means = expand_groups(query, key, value, block_map, scale)
    bias = bias.transpose(-1, -2).masked_fill(block_map.selected, -torch.inf)  # [B, H, Gq, Gk]
    pieces = Pieces.cut(block_map.query_order, block_map.query_offsets)
    num_groups = bias.shape[-1]
    pairs = torch.arange(num_groups, device=query.device) * bias.shape[2] + pieces.group[..., None]
    rows = _take_rows(means.flatten(2, 3), pairs)  # [B, H, P, Gk, 2 D]
    keys, values = rows.chunk(2, dim=-1)
    scores = _product(pieces.gather(query), keys.transpose(-1, -2)).mul_(scale)  # [B, H, P, R, Gk]
    scores += _take_rows(bias, pieces.group)[..., None, :]
    rows, lse = _softmax_product(scores, values)
    out = _scatter(rows, pieces, query).to(query.dtype)
    return out, _scatter(lse[..., None], pieces, query)[..., 0]


def expand_groups(
    query: Tensor, key: Tensor, value: Tensor, block_map: BlockMap, scale: float
) -> Expansion:
    """Compute the expansion of all key groups about the mean of each query group.

    Arguments are those of `attend_to_skipped`.
    """
    mean_query = scale * group_means(query, block_map.query_order, block_map.query_offsets)
    groups = (block_map.key_order, block_map.key_offsets)
    # Logits of the mean keys, [B, H, Gk, Gq].
    mean_logits = group_means(key, *groups) @ mean_query.transpose(-1, -2)
    pieces = Pieces.cut(*groups)
    tokens = pieces.gather(torch.cat([key, value], -1))  # [B, H, P, R, 2 D]
    keys = tokens[..., : key.shape[-1]]
    excess = _product(keys, mean_query.transpose(-1, -2)[:, :, None])  # [B, H, P, R, Gq]
    # A mean weight is at least 1, so no sum of weights underflows.
    excess -= _take_rows(mean_logits, pieces.group)[..., None, :]
    excess.clamp_(max=MAX_EXCESS)
    weights = excess.exp().mul_(pieces.mask[..., None])
    total = _sum_pieces(weights.sum(-2), pieces, mean_logits.shape[2])  # [B, H, Gk, Gq]
    # An unused piece may belong to an empty group, which has no weights.
    weights /= _take_rows(total.clamp(min=1), pieces.group)[..., None, :]
    means = _product(weights.transpose(-1, -2), tokens)  # [B, H, P, Gq, 2 D]
    mean_excess = _sum_pieces((weights * excess).sum(-2), pieces, mean_logits.shape[2])
    # L is mean_logits + ln total, and the weighted mean of the logits is mean_logits + mean_excess.
    return Expansion(total.log() - mean_excess, _sum_pieces(means, pieces, mean_logits.shape[2]))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply the last two axes in float32."""
    return left.float() @ right.float()


def _take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return rows of ``[B, H, N, ...]`` by index, int64 ``[B, H, ...]``: ``[B, H, ..., ...]``."""
    batch, heads, rows = x.shape[:3]
    first = torch.arange(batch * heads, device=x.device) * rows
    flat = index + first.view(batch, heads, *[1] * (index.dim() - 2))
    # One copy of whole rows, because gather() moves single numbers.
    return x.flatten(0, 2).index_select(0, flat.flatten()).view(*index.shape, *x.shape[3:])


def _sum_pieces(parts: Tensor, pieces: Pieces, num_groups: int) -> Tensor:
    """Add up the pieces ``[B, H, P, ...]`` of each group, float32 ``[B, H, G, ...]``."""
    batch, heads, _ = pieces.group.shape
    first = torch.arange(batch * heads, device=parts.device).view(batch, heads, 1) * num_groups
    sums = parts.new_zeros(batch * heads * num_groups, parts[0, 0, 0].numel())
    sums.index_add_(0, (pieces.group + first).flatten(), parts.reshape(-1, sums.shape[1]))
    return sums.view(batch, heads, num_groups, *parts.shape[3:])


def _scatter(rows: Tensor, pieces: Pieces, query: Tensor) -> Tensor:
    """Put rows ``[B, H, P, R, D]`` back in token order, ``[B, H, S, D]``."""
    batch, heads, num_tokens, _ = query.shape
    # Padding goes to a last row of each head.
    tokens = pieces.tokens.masked_fill(~pieces.mask, num_tokens)
    first = torch.arange(batch * heads, device=rows.device) * (num_tokens + 1)
    index = tokens + first.view(batch, heads, 1, 1)
    out = rows.new_empty(batch * heads * (num_tokens + 1), rows.shape[-1])
    out.index_copy_(0, index.flatten(), rows.flatten(0, -2))
    return out.view(batch, heads, num_tokens + 1, -1)[:, :, :num_tokens]
