"""Attend to selected keys and to the expansions of skipped key groups on a CPU, in one pass and one softmax.

Tokens are sorted by group once for each head. Groups are then slices, and one small product serves each.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch

from dit_accel_kernels.contracts import label_positions

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels.contracts import BlockMap

# Largest logit of a key above the logit of its group's mean that exp() still takes.
MAX_EXCESS = 60.0


class Head(NamedTuple):
    """One head, sorted by group.

    Attributes:
        query: scaled queries, float32 ``[Sq, D]``.
        tokens: keys and values, float32 ``[Sk, 2 D]``.
        query_labels, key_labels: group of each token, int64 ``[S]``.
        query_sizes, key_sizes: tokens in each group, int64 ``[G]``.
        selected: bool ``[Gq, Gk]``.
    """

    query: Tensor
    tokens: Tensor
    query_labels: Tensor
    key_labels: Tensor
    query_sizes: Tensor
    key_sizes: Tensor
    selected: Tensor


def expanded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run `dit_accel_kernels.sparse_attention` with expansions on a CPU; arguments are checked there."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32) if return_lse else None
    query_labels = label_positions(block_map.query_offsets, query.shape[2])
    key_labels = label_positions(block_map.key_offsets, key.shape[2])
    inference = torch.is_inference_mode_enabled()  # a mode of the thread

    def attend(at: tuple[int, int]) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            query_order, key_order = block_map.query_order[at], block_map.key_order[at]
            tokens = torch.cat([x[at].index_select(0, key_order) for x in (key, value)], 1)
            rows = Head(
                scale * query[at].index_select(0, query_order).float(),
                tokens.float(),
                query_labels[at],
                key_labels[at],
                block_map.query_offsets[at].diff(),
                block_map.key_offsets[at].diff(),
                block_map.selected[at],
            )
            attended, sums = _attend_head(rows, return_lse)
            out[at].index_copy_(0, query_order, attended.to(out.dtype))
            if lse is not None and sums is not None:
                lse[at].index_copy_(0, query_order, sums)

    heads = list(itertools.product(range(query.shape[0]), range(query.shape[1])))
    # The products are too small for several threads, so each worker takes a head and uses one thread.
    threads = torch.get_num_threads()
    workers = ThreadPoolExecutor(
        min(threads, len(heads)), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        with workers:
            list(workers.map(attend, heads))
    finally:
        torch.set_num_threads(threads)  # a worker also changes the number for new threads
    return out, lse


def _attend_head(head: Head, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    """Return the attention of a head in the order of its groups, float32 ``[Sq, D]``, and its log-sum-exp."""
    head_dim = head.query.shape[1]
    bias, means = _expand(head)
    query_group, column = head.selected.index_select(1, head.key_labels).nonzero().unbind(1)
    counts = torch.bincount(query_group, minlength=len(head.query_sizes)).tolist()
    out, lses = torch.empty_like(head.query), []
    sizes = head.query_sizes.tolist()
    parts = zip(head.query.split(sizes), out.split(sizes), column.split(counts), strict=True)
    for group, (query, target, columns) in enumerate(parts):
        exact, stand_ins = head.tokens.index_select(0, columns), means[:, group]
        scores = query.new_empty(len(query), len(columns) + len(stand_ins))
        torch.mm(query, exact[:, :head_dim].t(), out=scores[:, : len(columns)])
        torch.addmm(bias[group], query, stand_ins[:, :head_dim].t(), out=scores[:, len(columns) :])
        if return_lse:
            lses.append(scores.logsumexp(-1))
        weights = scores.softmax(-1)
        torch.mm(weights[:, : len(columns)], exact[:, head_dim:], out=target)
        target.addmm_(weights[:, len(columns) :], stand_ins[:, head_dim:])
    return out, torch.cat(lses) if return_lse else None


def _expand(head: Head) -> tuple[Tensor, Tensor]:
    """Expand each key group about the mean query of each query group.

    Returns:
        bias float32 ``[Gq, Gk]``, -inf for a selected or an empty group; and weighted mean keys and values,
        float32 ``[Gk, Gq, 2 D]``.
    """
    head_dim, labels = head.query.shape[1], head.key_labels
    mean_query = _sum_groups(head.query, head.query_labels, len(head.query_sizes))
    mean_query /= head.query_sizes.clamp(min=1)[:, None]
    keys, num_groups = head.tokens[:, :head_dim], len(head.key_sizes)
    mean_key = _sum_groups(keys, labels, num_groups) / head.key_sizes.clamp(min=1)[:, None]
    mean_logits = mean_key @ mean_query.t()  # [Gk, Gq]
    # A mean weight is at least 1, so no sum of weights underflows.
    excess = torch.mm(keys, mean_query.t()).sub_(mean_logits.index_select(0, labels))
    weights = excess.clamp_(max=MAX_EXCESS).exp()  # [Sk, Gq]
    total = _sum_groups(weights, labels, num_groups)
    weights /= total.index_select(0, labels)
    mean_excess = _sum_groups(excess.mul_(weights), labels, num_groups)
    means = head.tokens.new_zeros(num_groups, len(mean_query), 2 * head_dim)
    sizes = head.key_sizes.tolist()
    for target, weight, rows in zip(
        means, weights.split(sizes), head.tokens.split(sizes), strict=True
    ):
        torch.mm(weight.t(), rows, out=target)
    # The log-sum-exp is mean_logits + ln total, and the weighted mean logit is mean_logits + mean_excess.
    bias = (total.log() - mean_excess).t().masked_fill(head.selected, -torch.inf)
    return bias, means


def _sum_groups(rows: Tensor, labels: Tensor, count: int) -> Tensor:
    """Add up the rows ``[S, N]`` of each group, float32 ``[G, N]``."""
    return rows.new_zeros(count, rows.shape[1]).index_add_(0, labels, rows)
