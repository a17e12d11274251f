"""Run variable-block sparse attention on a CPU: compiled from C++, or by plain products without a compiler."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from dit_accel_kernels.cpu.compiled import attend, library_for
from dit_accel_kernels.precision import Precision, round_weights_e4m3, simulate_quantization

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels.contracts import BlockMap, Skipped

# Largest logit of a key above the logit of its group's mean that exp() still takes.
MAX_EXCESS = 60.0


class Tokens(NamedTuple):
    """Tokens of a head, sorted by group.

    Attributes:
        query: scaled queries, float32 ``[Sq, D]``.
        rows: keys and values, float32 ``[Sk, 2 D]``.
    """

    query: Tensor
    rows: Tensor


class StandIns(NamedTuple):
    """Stand-ins of the key groups that each query group skips.

    Attributes:
        query: scaled queries, float32 ``[Sq, D]``.
        bias: logit of a query of 0, float32 ``[Gq, Gk]``; -inf for a selected or an empty key group.
        rows: mean keys and values, float32 ``[Gk, Gq, 2 D]``.
    """

    query: Tensor
    bias: Tensor
    rows: Tensor


@dataclass(frozen=True)
class HeadMap:
    """The groups of one head.

    Attributes:
        query_order, key_order: tokens group by group, int64 ``[S]``.
        query_labels, key_labels: group of each of them, int64 ``[S]``.
        query_sizes, key_sizes: tokens in each group, int64 ``[G]``.
        selected: bool ``[Gq, Gk]``.
    """

    query_order: Tensor
    key_order: Tensor
    query_labels: Tensor
    key_labels: Tensor
    query_sizes: Tensor
    key_sizes: Tensor
    selected: Tensor

    @classmethod
    def of(cls, block_map: BlockMap, at: tuple[int, int]) -> HeadMap:
        """Return the groups of one head."""
        sizes = [x[at].diff() for x in (block_map.query_offsets, block_map.key_offsets)]
        labels = [torch.arange(len(n), device=n.device).repeat_interleave(n) for n in sizes]
        orders = (block_map.query_order[at], block_map.key_order[at])
        return cls(*orders, labels[0], labels[1], sizes[0], sizes[1], block_map.selected[at])

    def sort(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tokens:
        """Return tokens ``[S, D]`` group by group."""
        rows = torch.cat([x.index_select(0, self.key_order).float() for x in (key, value)], 1)
        return Tokens(scale * query.index_select(0, self.query_order).float(), rows)


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    precision: Precision,
    return_lse: bool,
    skipped: Skipped | None,
) -> tuple[Tensor, Tensor | None]:
    """Run `dit_accel_kernels.sparse_attention` on a CPU; arguments are checked there."""
    library = library_for(query)
    if precision == "full" and not isinstance(library, str):
        return attend(library, query, key, value, block_map, scale, return_lse, skipped)
    out, lse = attend_by_products(query, key, value, block_map, scale, precision, skipped)
    return out, lse if return_lse else None


def attend_by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    precision: Precision,
    skipped: Skipped | None,
) -> tuple[Tensor, Tensor]:
    """Run `dit_accel_kernels.sparse_attention` by plain products in float32, group by group.

    Tokens are sorted by group once for each head. Groups are then slices, and one small product serves each.
    """
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    selected = [query, key, value]
    value_mean = row_bias = None
    if precision != "full":
        simulated = simulate_quantization(query, key, value, precision)
        selected = [simulated.query, simulated.key, simulated.value]
        value_mean, row_bias = simulated.value_mean, scale * simulated.lse_shift
    inference = torch.is_inference_mode_enabled()  # a mode of the thread

    def attend_head(at: tuple[int, int]) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            groups = HeadMap.of(block_map, at)
            exact = groups.sort(selected[0][at], selected[1][at], selected[2][at], scale)
            stand_ins = None
            if skipped is not None:
                tokens = groups.sort(query[at], key[at], value[at], scale)
                stand_ins = _expand(groups, tokens, skipped)
            bias = None if row_bias is None else row_bias[at][groups.query_order]
            mean = None if value_mean is None else value_mean[at]
            attended, sums = _attend_groups(groups, exact, stand_ins, bias, mean)
            out[at].index_copy_(0, groups.query_order, attended.to(out.dtype))
            lse[at].index_copy_(0, groups.query_order, sums)

    heads = list(itertools.product(range(query.shape[0]), range(query.shape[1])))
    # The products are too small for several threads, so each worker takes a head and uses one thread.
    threads = torch.get_num_threads()
    workers = ThreadPoolExecutor(
        min(threads, len(heads)), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        with workers:
            list(workers.map(attend_head, heads))
    finally:
        torch.set_num_threads(threads)  # a worker also changes the number for new threads
    return out, lse


def _attend_groups(
    groups: HeadMap,
    exact: Tokens,
    stand_ins: StandIns | None,
    row_bias: Tensor | None,
    value_mean: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the attention of a head in the order of its groups, float32 ``[Sq, D]``, and its log-sum-exp.

    Args:
        groups: the groups of the head.
        exact: tokens for the selected pairs.
        stand_ins: what stands for the others; None leaves them out.
        row_bias: added to the logits of selected keys, float32 ``[Sq]``.
        value_mean: added to selected values, which are e4m3 then, float32 ``[D]``.
    """
    head_dim = exact.query.shape[1]
    query_group, column = groups.selected.index_select(1, groups.key_labels).nonzero().unbind(1)
    counts = torch.bincount(query_group, minlength=len(groups.query_sizes)).tolist()
    ends = groups.query_sizes.cumsum(0).tolist()
    out, lse = torch.empty_like(exact.query), exact.query.new_empty(len(exact.query))
    for group, columns in enumerate(column.split(counts)):
        rows, count = slice(ends[group - 1] if group else 0, ends[group]), len(columns)
        keys, values = exact.rows.index_select(0, columns).split(head_dim, 1)
        scores = exact.query[rows] @ keys.t()
        if row_bias is not None:
            scores += row_bias[rows, None]
        if stand_ins is not None:
            means = stand_ins.rows[:, group]
            logits = torch.addmm(
                stand_ins.bias[group], stand_ins.query[rows], means[:, :head_dim].t()
            )
            scores = torch.cat([scores, logits], 1)
        if not scores.shape[1]:
            out[rows], lse[rows] = 0.0, -torch.inf
            continue
        weights = scores.softmax(-1)
        # The largest weight is exp(largest score - log-sum-exp).
        lse[rows] = scores.amax(-1) - weights.amax(-1).log()
        selected = weights[:, :count]
        if value_mean is not None and count:
            out[rows] = selected.sum(-1, keepdim=True) * value_mean
            out[rows] += round_weights_e4m3(selected) @ values
        else:
            torch.mm(selected, values, out=out[rows])
        if stand_ins is not None:
            out[rows].addmm_(weights[:, count:], means[:, head_dim:])
    return out, lse


def _expand(groups: HeadMap, tokens: Tokens, skipped: Skipped) -> StandIns:
    """Expand each key group about the mean query of each query group, or about 0 for centroids."""
    head_dim, labels, num_groups = tokens.query.shape[1], groups.key_labels, len(groups.key_sizes)
    mean_query = tokens.query.new_zeros(1, head_dim)
    if skipped == "expansion":
        mean_query = _sum_groups(tokens.query, groups.query_labels, len(groups.query_sizes))
        mean_query /= groups.query_sizes.clamp(min=1)[:, None]
    keys = tokens.rows[:, :head_dim]
    mean_key = _sum_groups(keys, labels, num_groups) / groups.key_sizes.clamp(min=1)[:, None]
    mean_logits = mean_key @ mean_query.t()  # [Gk, Gq]
    # A mean weight is at least 1, so no sum of weights underflows.
    excess = torch.mm(keys, mean_query.t()).sub_(mean_logits.index_select(0, labels))
    weights = excess.clamp_(max=MAX_EXCESS).exp()  # [Sk, Gq]
    total = _sum_groups(weights, labels, num_groups)
    weights /= total.index_select(0, labels)
    mean_excess = _sum_groups(excess.mul_(weights), labels, num_groups)
    means = tokens.rows.new_zeros(num_groups, len(mean_query), 2 * head_dim)
    sizes = groups.key_sizes.tolist()
    parts = zip(means, weights.split(sizes), tokens.rows.split(sizes), strict=True)
    for target, weight, rows in parts:
        torch.mm(weight.t(), rows, out=target)
    # The log-sum-exp is mean_logits + ln total, and the weighted mean logit is mean_logits + mean_excess.
    bias = (total.log() - mean_excess).t().expand(groups.selected.shape)
    means = means.expand(-1, len(groups.query_sizes), -1)
    return StandIns(tokens.query, bias.masked_fill(groups.selected, -torch.inf), means)


def _sum_groups(rows: Tensor, labels: Tensor, count: int) -> Tensor:
    """Add up the rows ``[S, N]`` of each group, float32 ``[G, N]``."""
    return rows.new_zeros(count, rows.shape[1]).index_add_(0, labels, rows)
