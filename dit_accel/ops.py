"""The ops a method may use, timed."""

from __future__ import annotations

from torch import Tensor

from dit_accel.call import AttentionCall, Plan
from dit_accel.stopwatch import Stopwatch
from dit_accel_kernels import (
    BlockMap,
    Precision,
    centroid_mass,
    group_by_label,
    kmeans,
    quantized_attention,
    select_top_p,
    sparse_attention,
    strided_centroids,
)


class Ops:
    """Kernels as methods call them, each measured under the name that the report shows."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def kmeans(
        self, tokens: Tensor, count: int, centroids: Tensor | None, iterations: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Cluster ``[B, H, S, D]`` tokens: ``iterations[0]`` rounds from strided tokens, or
        ``iterations[1]`` from
        ``centroids``; returns labels and centroids."""
        with self.stopwatch("kmeans", tokens.device):
            if centroids is None:
                return kmeans(tokens, strided_centroids(tokens, count), iterations[0])
            return kmeans(tokens, centroids, iterations[1])

    def group(self, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Order and offsets of labelled tokens."""
        with self.stopwatch("selection", labels.device):
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
        with self.stopwatch("selection", key_sizes.device):
            mass = centroid_mass(query_centroids, key_centroids, key_sizes, scale)
            return select_top_p(mass, top_p, min_share)

    def run(self, plan: Plan, call: AttentionCall, precision: Precision = "full") -> Tensor:
        """Attention of a call by a plan, ``[B, S, H, D]``."""
        with self.stopwatch("attention", call.query.device):
            query, key, value = (t.transpose(1, 2) for t in (call.query, call.key, call.value))
            out, _ = sparse_attention(
                query,
                key,
                value,
                plan.block_map,
                scale=call.scale,
                precision=precision,
                return_lse=False,
            )
            return out.transpose(1, 2).contiguous()

    def quantized(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, precision: Precision
    ) -> Tensor:
        """Dense attention of ``[B, S, H, D]`` tensors in a quantized precision."""
        with self.stopwatch("dense", query.device):
            query, key, value = (t.transpose(1, 2) for t in (query, key, value))
            out, _ = quantized_attention(query, key, value, scale=scale, precision=precision)
            return out.transpose(1, 2).contiguous()

    def density(self, block_map: BlockMap) -> Tensor:
        with self.stopwatch("selection", block_map.selected.device):
            return block_map.density()
