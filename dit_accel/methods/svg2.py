"""Sparse VideoGen2: semantic-aware permutation (Yang et al., arXiv 2505.18875)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dit_accel.call import AttentionCall, Plan
from dit_accel.methods.base import Method
from dit_accel.ops import Ops
from dit_accel_kernels import BlockMap


@dataclass
class SVG2State:
    """Centroids of the last plan, ``[B, H, K, D]``, from which the next k-means starts; the plan, and
    the step it was made in.
    """

    query_centroids: Tensor | None = None
    key_centroids: Tensor | None = None
    made: Plan | None = None
    step: int = 0


@dataclass(frozen=True)
class SVG2(Method):
    """Cluster queries and keys by k-means; each query cluster attends to the key clusters that hold
    its mass.

    Attributes:
        query_clusters: clusters of queries per head; None: one per 64 tokens, at most 300.
        key_clusters: clusters of keys per head; None: one per 16 tokens, at most 1000.
        top_p: share of the estimated attention mass that the kept key clusters reach, in (0, 1].
        min_key_share: share of the key clusters that every query cluster keeps at least, in [0, 1].
        kmeans_iterations: rounds of k-means (at the first sparse step, at later steps, which start
            warm).
        refresh: a plan serves this many steps, 1: it is made anew at every step.
    """

    name: ClassVar[str] = "svg2"
    source: ClassVar[str] = "Sparse VideoGen2, arXiv 2505.18875"

    query_clusters: int | None = None
    key_clusters: int | None = None
    top_p: float = 0.9
    min_key_share: float = 0.1
    kmeans_iterations: tuple[int, int] = (8, 1)
    refresh: int = 1

    def __post_init__(self) -> None:
        for name in ("query_clusters", "key_clusters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0.0 <= self.min_key_share <= 1.0:
            raise ValueError(f"min_key_share must be in [0, 1], got {self.min_key_share}")
        if min(self.kmeans_iterations) < 1:
            raise ValueError(
                f"kmeans_iterations must both be at least 1, got {self.kmeans_iterations}"
            )
        if self.refresh < 1:
            raise ValueError(f"refresh must be at least 1, got {self.refresh}")

    def new_state(self) -> SVG2State:
        return SVG2State()

    def clusters(self, tokens: int) -> tuple[int, int]:
        """Number of query and key clusters for a number of tokens."""
        queries = self.query_clusters or min(300, max(1, tokens // 64))
        keys = self.key_clusters or min(1000, max(1, tokens // 16))
        return min(queries, tokens), min(keys, tokens)

    def plan(self, call: AttentionCall, state: SVG2State, ops: Ops) -> Plan:
        if self.refresh == 1:
            return self.new_plan(call, state, ops)  # not kept: plans of all layers are gigabytes
        if state.made is None or call.step - state.step >= self.refresh:
            state.made, state.step = self.new_plan(call, state, ops), call.step
        return state.made

    def new_plan(self, call: AttentionCall, state: SVG2State, ops: Ops) -> Plan:
        """Cluster, score and select."""
        query, key = call.query.transpose(1, 2), call.key.transpose(1, 2)  # [B, H, S, D]
        queries, keys = self.clusters(call.tokens)
        rounds = self.kmeans_iterations
        query_labels, state.query_centroids = ops.kmeans(
            query, queries, state.query_centroids, rounds
        )
        key_labels, state.key_centroids = ops.kmeans(key, keys, state.key_centroids, rounds)
        query_order, query_offsets = ops.group(query_labels, queries)
        key_order, key_offsets = ops.group(key_labels, keys)
        selected = ops.select_top_p(
            state.query_centroids,
            state.key_centroids,
            key_offsets.diff(dim=-1),
            call.scale,
            self.top_p,
            self.min_key_share,
        )
        return Plan(BlockMap(selected, query_order, query_offsets, key_order, key_offsets))
