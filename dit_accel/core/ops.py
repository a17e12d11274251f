"""The ops that methods call, timed and counted for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from dit_accel_kernels import (
    ExternalAttention,
    GroupStatistics,
    centroid_error,
    centroid_logits,
    expansion_error,
    group_logits,
    group_variance,
    kmeans_groups,
    merge_attention,
    quantized_attention,
    random_centroids,
    select_budget,
    select_shared_budget,
    select_top_p,
    sparse_attention,
    strided_centroids,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel.core.attention_call import AttentionCall, Plan
    from dit_accel.core.timer import Timer
    from dit_accel_kernels import BlockMap, Precision, Skipped

    DenseKernel = Precision | ExternalAttention

T = TypeVar("T")


class Ops:
    """Kernels as methods call them. The report shows the time of each under its name.

    Args:
        timer: Where the seconds are added.
        plans: Counter of the plans that were ``"made"`` and ``"reused"``.
    """

    def __init__(self, timer: Timer, plans: Counter[str] | None = None) -> None:
        self.timer = timer
        self.plans = Counter() if plans is None else plans
        self._shared: dict[Hashable, Any] = {}

    def count_plan(self, *, reused: bool) -> None:
        """Count a plan as made or reused."""
        self.plans["reused" if reused else "made"] += 1

    def has_shared(self, key: Hashable) -> bool:
        """Return True if a shared value exists."""
        return key in self._shared

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return a value that all layers, branches and steps share, such as a static plan.

        The first call with a key makes the value.
        """
        if key not in self._shared:
            self._shared[key] = make()
        value: T = self._shared[key]
        return value

    def shared_values(self) -> list[Any]:
        """Return all shared values."""
        return list(self._shared.values())

    def read(self, values: Tensor) -> list[float]:
        """Return a few values as Python numbers. This waits for the device."""
        numbers: list[float] = values.tolist()
        return numbers

    def clear(self) -> None:
        """Drop the shared values, because the run is over."""
        self._shared.clear()

    def kmeans(
        self,
        tokens: Tensor,
        count: int,
        centroids: Tensor | None,
        iterations: tuple[int, int],
        init: Literal["strided", "random"] = "strided",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cluster tokens ``[B, H, S, D]`` by k-means.

        Args:
            tokens: Queries or keys.
            count: Number of clusters.
            centroids: Centroids ``[B, H, K, D]`` to start from; None starts from tokens.
            iterations: Rounds from tokens, and rounds from given centroids.
            init: Which tokens to start from.

        Returns:
            The order ``[B, H, S]`` and the offsets ``[B, H, K + 1]`` of the clusters, and centroids ``[B, H, K, D]``.
        """
        with self.timer("kmeans", tokens.device):
            if centroids is None:
                first = strided_centroids if init == "strided" else random_centroids
                return kmeans_groups(tokens, first(tokens, count), iterations[0])
            return kmeans_groups(tokens, centroids, iterations[1])

    def select_top_p(
        self,
        query_centroids: Tensor,
        key_centroids: Tensor,
        key_sizes: Tensor,
        scale: float,
        top_p: float,
        min_share: float,
    ) -> Tensor:
        """Select key groups by estimated attention mass, bool ``[B, H, Gq, Gk]``."""
        with self.timer("selection", key_sizes.device):
            logits = group_logits(query_centroids, key_centroids, key_sizes, scale)
            return select_top_p(logits.softmax(-1), top_p, min_share, logits=logits)

    def centroid_logits(
        self,
        query_centroids: Tensor,
        key_centroids: Tensor,
        scale: float,
        key_variance: Tensor | None,
    ) -> Tensor:
        """Estimate the logit of one key of each group, float32 ``[B, H, Gq, Gk]``."""
        with self.timer("selection", query_centroids.device):
            return centroid_logits(query_centroids, key_centroids, scale, key_variance)

    def mass_per_key(self, logits: Tensor, key_offsets: Tensor) -> Tensor:
        """Return the estimated attention of one key of each group, from its logit, ``[B, H, Gq, Gk]``."""
        with self.timer("selection", logits.device):
            sizes = key_offsets.diff(dim=-1).float().log()[:, :, None]
            return (logits - (logits + sizes).logsumexp(-1, keepdim=True)).exp()

    def centroid_error(
        self,
        query_centroids: Tensor,
        key: Tensor,
        value: Tensor,
        key_order: Tensor,
        key_offsets: Tensor,
        scale: float,
    ) -> Tensor:
        """Estimate the error per key if a centroid replaces its group, float32 ``[B, H, Gq, Gk]``."""
        with self.timer("selection", key.device):
            return centroid_error(query_centroids, key, value, key_order, key_offsets, scale)

    def expansion_error(
        self,
        query: GroupStatistics,
        key: GroupStatistics,
        value: GroupStatistics,
        key_sizes: Tensor,
        scale: float,
    ) -> Tensor:
        """Estimate the error if an expansion replaces a key group, float32 ``[B, H, Gq, Gk]``."""
        with self.timer("selection", key_sizes.device):
            return expansion_error(query, key, value, key_sizes, scale)

    def group_statistics(
        self, tokens: Tensor, order: Tensor, offsets: Tensor, mean: Tensor | None = None
    ) -> GroupStatistics:
        """Return mean and variance of each group of tokens ``[B, H, S, D]``.

        Args:
            tokens: Tokens.
            order, offsets: Groups, as in `BlockMap`.
            mean: The means, if they are known.
        """
        with self.timer("selection", tokens.device):
            return GroupStatistics.of(tokens, order, offsets, mean)

    def select_shared(
        self, score: Tensor, query_sizes: Tensor, key_sizes: Tensor, shares: Sequence[float]
    ) -> Tensor:
        """Select pairs of query group and key group by falling score, bool ``[B, H, Gq, Gk]``.

        Args:
            score: Score of each pair, ``[B, H, Gq, Gk]``.
            query_sizes, key_sizes: Tokens of each group, ``[B, H, G]``.
            shares: One share of the (query, key) pairs of all heads, or one for each head alone.
        """
        with self.timer("selection", score.device):
            cost = query_sizes[..., None] * key_sizes[:, :, None]
            if len(shares) == 1:
                chosen = select_shared_budget(score.flatten(1), cost.flatten(1), shares[0])
                return chosen.view(score.shape)
            heads = [
                select_shared_budget(score[:, head].flatten(1), cost[:, head].flatten(1), share)
                for head, share in enumerate(shares)
            ]
            return torch.stack(heads, 1).view(score.shape)

    def group_variance(
        self, tokens: Tensor, order: Tensor, offsets: Tensor, means: Tensor
    ) -> Tensor:
        """Return the variance of each group per channel around its mean, float32 ``[B, H, G, D]``."""
        with self.timer("selection", tokens.device):
            return group_variance(tokens, order, offsets, means)

    def select_budget(self, score: Tensor, key_sizes: Tensor, keys: float | list[float]) -> Tensor:
        """Select key groups by falling score, bool ``[B, H, Gq, Gk]``.

        Args:
            score: Score of each group, ``[B, H, Gq, Gk]``.
            key_sizes: Number of keys in each group.
            keys: Number of keys that every query group gets; a list holds one number for each head.
        """
        with self.timer("selection", score.device):
            budgets = keys if isinstance(keys, list) else [keys]
            # Filled on the device, because a copy from the host would wait for it.
            device = score.device
            shares = [torch.full((1, 1), k, dtype=torch.float32, device=device) for k in budgets]
            budget = torch.cat(shares)
            return select_budget(score, key_sizes, budget.expand(score.shape[:3]))

    def run(self, plan: Plan, call: AttentionCall) -> Tensor:
        """Return the attention of a call by a plan, ``[B, S, H, D]``."""
        out, _ = self.partial(plan.block_map, call, return_lse=False, skipped=plan.skipped)
        return out.transpose(1, 2).contiguous()

    def partial(
        self,
        block_map: BlockMap,
        call: AttentionCall,
        *,
        return_lse: bool = True,
        skipped: Skipped | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention over the keys that a map selects, ``[B, H, S, D]``, and its log-sum-exp.

        Args:
            block_map: Groups of queries and keys, and which are selected.
            call: The call.
            return_lse: Return the log-sum-exp.
            skipped: What stands for the key groups that a query group does not select; None leaves them out.
        """
        with self.timer("attention", call.query.device):
            return sparse_attention(
                *heads_first(call),
                block_map,
                scale=call.scale,
                precision=call.precision,
                return_lse=return_lse,
                skipped=skipped,
            )

    def merge(
        self, first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Merge the attention over two disjoint sets of keys, ``[B, H, S, D]``, by their log-sum-exps."""
        with self.timer("merge", first.device):
            return merge_attention(first, first_lse, second, second_lse)

    def dense(self, call: AttentionCall) -> Tensor:
        """Return the dense attention of a call in its precision, ``[B, S, H, D]``."""
        if call.precision != "full":
            return self.quantized(call.query, call.key, call.value, call.scale, call.precision)
        with self.timer("attention", call.query.device):
            attention = torch.nn.functional.scaled_dot_product_attention
            out = attention(*heads_first(call), scale=call.scale)
            return out.transpose(1, 2).contiguous()

    def quantized(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, by: DenseKernel
    ) -> Tensor:
        """Return the dense attention of ``[B, S, H, D]`` tensors by a quantized precision or another package."""
        with self.timer("dense", query.device):
            query, key, value = (t.transpose(1, 2) for t in (query, key, value))
            if isinstance(by, ExternalAttention):
                out = by(query, key, value, scale=scale)
            else:
                out, _ = quantized_attention(
                    query, key, value, scale=scale, precision=by, return_lse=False
                )
            return out.transpose(1, 2).contiguous()

    def density(self, block_map: BlockMap) -> Tensor:
        """Return the density of a map, a float32 scalar on the device."""
        with self.timer("selection", block_map.selected.device):
            return block_map.density()


def heads_first(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value as ``[B, H, S, D]`` views."""
    return call.query.transpose(1, 2), call.key.transpose(1, 2), call.value.transpose(1, 2)
