"""The ops a method may use, timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.timer import Timer
from dit_accel_kernels import (
    BlockMap,
    Precision,
    centroid_error,
    centroid_logits,
    centroid_mass,
    group_by_label,
    group_variance,
    kmeans,
    merge_attention,
    quantized_attention,
    select_budget,
    select_top_p,
    skipped_attention,
    sparse_attention,
    strided_centroids,
)

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Ops:
    """Kernels as methods call them, each measured under the name that the report shows."""

    def __init__(self, timer: Timer, plans: Counter[str] | None = None) -> None:
        self.timer = timer
        self.plans = Counter() if plans is None else plans
        self._shared: dict[Hashable, Any] = {}

    def planned(self, *, reused: bool) -> None:
        """Count a plan, ``made`` or ``reused``."""
        self.plans["reused" if reused else "made"] += 1

    def knows(self, key: Hashable) -> bool:
        """Whether something shared was made."""
        return key in self._shared

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What all layers, branches and steps share (a static plan), made when it is first asked for."""
        if key not in self._shared:
            self._shared[key] = make()
        found: T = self._shared[key]
        return found

    def kept(self) -> list[Any]:
        """All that is shared."""
        return list(self._shared.values())

    def read(self, values: Tensor) -> list[float]:
        """A few values as Python numbers; waits for the device."""
        found: list[float] = values.tolist()
        return found

    def forget(self) -> None:
        """Drop the shared plans: the run is over."""
        self._shared.clear()

    def kmeans(
        self, tokens: Tensor, count: int, centroids: Tensor | None, iterations: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Cluster ``[B, H, S, D]`` tokens: ``iterations[0]`` rounds from strided tokens, or
        ``iterations[1]`` from ``centroids``; returns labels and centroids.
        """
        with self.timer("kmeans", tokens.device):
            if centroids is None:
                return kmeans(tokens, strided_centroids(tokens, count), iterations[0])
            return kmeans(tokens, centroids, iterations[1])

    def group(self, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Order and offsets of labelled tokens."""
        with self.timer("selection", labels.device):
            return group_by_label(labels, count)

    def select_top_p(
        self,
        query_centroids: Tensor,
        key_centroids: Tensor,
        key_sizes: Tensor,
        scale: float,
        top_p: float,
        min_share: float,
    ) -> Tensor:
        """Key groups per query group, bool ``[B, H, Gq, Gk]``, by estimated attention mass."""
        with self.timer("selection", key_sizes.device):
            mass = centroid_mass(query_centroids, key_centroids, key_sizes, scale)
            return select_top_p(mass, top_p, min_share)

    def centroid_logits(
        self,
        query_centroids: Tensor,
        key_centroids: Tensor,
        scale: float,
        key_variance: Tensor | None,
    ) -> Tensor:
        """Estimated logit of a key of each group, float32 ``[B, H, Gq, Gk]``."""
        with self.timer("selection", query_centroids.device):
            return centroid_logits(query_centroids, key_centroids, scale, key_variance)

    def centroid_error(
        self,
        query_centroids: Tensor,
        key: Tensor,
        value: Tensor,
        key_order: Tensor,
        key_offsets: Tensor,
        scale: float,
    ) -> Tensor:
        """Error per key of a centroid in place of its group, float32 ``[B, H, Gq, Gk]``."""
        with self.timer("selection", key.device):
            return centroid_error(query_centroids, key, value, key_order, key_offsets, scale)

    def group_variance(
        self, tokens: Tensor, order: Tensor, offsets: Tensor, means: Tensor
    ) -> Tensor:
        """Variance of each group per channel around its mean, float32 ``[B, H, G, D]``."""
        with self.timer("selection", tokens.device):
            return group_variance(tokens, order, offsets, means)

    def select_budget(self, score: Tensor, key_sizes: Tensor, keys: float | list[float]) -> Tensor:
        """Key groups by falling score, about ``keys`` keys for every query group, in all heads or head
        by head.
        """
        with self.timer("selection", score.device):
            each = keys if isinstance(keys, list) else [keys]  # filled on the device: no copy to it
            budget = torch.cat([torch.full((1, 1), k, device=score.device) for k in each])
            budget = budget.expand(score.shape[:3])
            return select_budget(score, key_sizes, budget)

    def run(self, plan: Plan, call: AttentionCall) -> Tensor:
        """Attention of a call by a plan, ``[B, S, H, D]``."""
        drop = plan.skipped == "drop"
        out, lse = self.part(plan.block_map, call, return_lse=not drop)
        if lse is not None:
            with self.timer("centroids", call.query.device):
                rest = skipped_attention(
                    *heads_first(call),
                    plan.block_map,
                    call.scale,
                    second_order=plan.skipped == "second-order",
                )
                out, _ = merge_attention(out, lse, *rest)
        return out.transpose(1, 2).contiguous()

    def part(
        self, block_map: BlockMap, call: AttentionCall, *, return_lse: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Attention over the keys that a map selects, ``[B, H, S, D]``, and its log-sum-exp."""
        with self.timer("attention", call.query.device):
            return sparse_attention(
                *heads_first(call),
                block_map,
                scale=call.scale,
                precision=call.precision,
                return_lse=return_lse,
            )

    def merge(
        self, first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attention over two disjoint sets of keys from that over each, ``[B, H, S, D]``."""
        with self.timer("merge", first.device):
            return merge_attention(first, first_lse, second, second_lse)

    def dense(self, call: AttentionCall) -> Tensor:
        """Dense attention of a call in its precision, ``[B, S, H, D]``."""
        if call.precision != "full":
            return self.quantized(call.query, call.key, call.value, call.scale, call.precision)
        with self.timer("attention", call.query.device):
            out = torch.nn.functional.scaled_dot_product_attention(
                *heads_first(call), scale=call.scale
            )
            return out.transpose(1, 2).contiguous()

    def quantized(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, precision: Precision
    ) -> Tensor:
        """Dense attention of ``[B, S, H, D]`` tensors in a quantized precision."""
        with self.timer("dense", query.device):
            query, key, value = (t.transpose(1, 2) for t in (query, key, value))
            out, _ = quantized_attention(query, key, value, scale=scale, precision=precision)
            return out.transpose(1, 2).contiguous()

    def density(self, block_map: BlockMap) -> Tensor:
        with self.timer("selection", block_map.selected.device):
            return block_map.density()


def heads_first(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as ``[B, H, S, D]`` views."""
    return call.query.transpose(1, 2), call.key.transpose(1, 2), call.value.transpose(1, 2)
