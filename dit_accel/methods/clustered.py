"""The base of methods that attend from clusters of queries to clusters of keys."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import MethodState, Refreshed, check_count
from dit_accel_kernels import BlockMap

if TYPE_CHECKING:
    from torch import Tensor


Init = Literal["strided", "random"]


@dataclass
class ClusterState(MethodState):
    """State with the centroids of the last plan, ``[B, H, K, D]``. The next k-means starts from them."""

    query_centroids: Tensor | None = None
    key_centroids: Tensor | None = None


@dataclass(frozen=True)
class Clusters:
    """Queries and keys of a call by cluster.

    Attributes:
        query_centroids, key_centroids: Centroids, float32 ``[B, H, K, D]``.
        query_order, key_order: Token indices cluster by cluster, ``[B, H, S]``.
        query_offsets, key_offsets: Start of each cluster in its order, ``[B, H, K + 1]``.
    """

    query_centroids: Tensor
    key_centroids: Tensor
    query_order: Tensor
    query_offsets: Tensor
    key_order: Tensor
    key_offsets: Tensor

    def block_map(self, selected: Tensor) -> BlockMap:
        """Return the map of a selection of clusters, bool ``[B, H, Kq, Kk]``."""
        return BlockMap(
            selected, self.query_order, self.query_offsets, self.key_order, self.key_offsets
        )


@dataclass(frozen=True, kw_only=True)
class Clustered(Refreshed):
    """A method that clusters queries and keys by k-means. Subclasses choose the blocks.

    Attributes:
        query_clusters: Clusters of queries per head. None makes one for 64 tokens, at most 300.
        key_clusters: Clusters of keys per head. None makes one for 16 tokens, at most 1000.
        kmeans_iterations: Rounds of k-means at the first step, and at later steps, which start from the last centroids.
        init: Tokens that k-means starts from. ``"strided"`` takes tokens at even distances. ``"random"`` draws them, as
            the released code does, and every run draws the same ones.
        dense_kmeans: True also runs k-means in the steps that are dense by ``schedule.dense_steps``, so that the
            centroids are warm at the first sparse step.
    """

    query_clusters: int | None = None
    key_clusters: int | None = None
    kmeans_iterations: tuple[int, int] = (8, 1)
    init: Init = "strided"
    dense_kmeans: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("query_clusters", "key_clusters"):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value)
        if min(self.kmeans_iterations) < 1:
            raise InvalidSettings(
                f"kmeans_iterations must both be at least 1, got {self.kmeans_iterations}"
            )

        if self.init not in get_args(Init):
            raise InvalidSettings(f"init must be strided or random, got {self.init!r}")

    @property
    def observes(self) -> bool:
        return self.dense_kmeans

    def new_state(self) -> ClusterState:
        return ClusterState()

    def clusters(self, tokens: int) -> tuple[int, int]:
        """Return the number of query and key clusters for a number of tokens."""
        queries = self.query_clusters or min(300, max(1, tokens // 64))
        keys = self.key_clusters or min(1000, max(1, tokens // 16))
        return min(queries, tokens), min(keys, tokens)

    def observe(self, call: AttentionCall, state: ClusterState, ops: Ops) -> None:
        self.cluster(call.visual(), state, ops)

    def new_plan(self, call: AttentionCall, state: ClusterState, ops: Ops) -> Plan:
        return self.choose(call, self.cluster(call, state, ops), ops)

    def cluster(self, call: AttentionCall, state: ClusterState, ops: Ops) -> Clusters:
        """Move the centroids of a state to a call, and return its clusters."""
        query, key, _ = heads_first(call)
        queries, keys = self.clusters(call.tokens)
        rounds, init = self.kmeans_iterations, self.init
        *query_groups, state.query_centroids = ops.kmeans(
            query, queries, warm(state.query_centroids, queries), rounds, init
        )
        *key_groups, state.key_centroids = ops.kmeans(
            key, keys, warm(state.key_centroids, keys), rounds, init
        )
        return Clusters(state.query_centroids, state.key_centroids, *query_groups, *key_groups)

    @abc.abstractmethod
    def choose(self, call: AttentionCall, clusters: Clusters, ops: Ops) -> Plan:
        """Choose the blocks to compute, and what replaces the others."""


def warm(centroids: Tensor | None, count: int) -> Tensor | None:
    """Return the centroids of the last plan, or None if their number has changed."""
    return centroids if centroids is not None and centroids.shape[2] == count else None
