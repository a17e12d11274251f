"""Control methods: what svg2 and re-ttention add is what they gain over these.

Controls of svg2 make its plan first, and then spend the same number of keys per query cluster in another way. They are
not meant to be fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from dit_accel import SVG2, AttentionCall, Method, Plan, ReTtention
from dit_accel.core.ops import Ops, heads_first
from dit_accel.methods import Attended
from dit_accel.methods.clustered import Clusters, ClusterState
from dit_accel.methods.re_ttention import Statistics
from dit_accel_eval.oracle_blocks import OracleBlocks, keys_per_query_group
from dit_accel_kernels import (
    BlockMap,
    centroid_mass,
    group_by_label,
    group_means,
    select_budget,
    select_top_p,
)


def density_controls(base: SVG2) -> list[Method]:
    """Return the controls that compute as many (query, key) pairs as ``base``."""
    return [
        ShuffledLabels(base=base),
        PositionalBlocks(base=base),
        RandomKeys(base=base),
        OracleBlocks(base=base),
    ]


@dataclass(frozen=True)
class Control(Method):
    """A method that changes the plan of another one.

    Attributes:
        base: Method whose plan is changed.
        seed: Seed of random choices, which also follow layer, step and branch.
    """

    base: SVG2 = field(default_factory=SVG2)
    seed: int = 0

    def new_state(self) -> ClusterState:
        return self.base.new_state()

    def generator(self, call: AttentionCall) -> torch.Generator:
        """Return the generator of a call's random choices."""
        context = call.context
        number = (self.seed * 1000 + context.step) * 1000 + context.layer
        return torch.Generator().manual_seed(2 * number + (context.branch == "uncond"))


@dataclass(frozen=True)
class ShuffledLabels(Control):
    """svg2's map over key clusters of the same sizes with random members."""

    name: ClassVar[str] = "shuffled-labels"
    source: ClassVar[str] = "control"

    def new_plan(self, call: AttentionCall, state: ClusterState, ops: Ops) -> Plan:
        block_map = self.base.new_plan(call, state, ops).block_map
        noise = torch.rand(block_map.key_order.shape, generator=self.generator(call))
        order = block_map.key_order.gather(-1, noise.argsort(dim=-1))
        return Plan(replace(block_map, key_order=order))


@dataclass(frozen=True)
class RandomKeys(Control):
    """Random single keys: as many for each query cluster as svg2 selects."""

    name: ClassVar[str] = "random-keys"
    source: ClassVar[str] = "control"

    def new_plan(self, call: AttentionCall, state: ClusterState, ops: Ops) -> Plan:
        block_map = self.base.new_plan(call, state, ops).block_map
        budget = keys_per_query_group(block_map)
        noise = torch.rand(*budget.shape, call.tokens, generator=self.generator(call))
        return Plan(select_single_keys(block_map, noise, budget))


@dataclass(frozen=True)
class PositionalBlocks(Control):
    """Uniform blocks of neighbouring tokens instead of clusters, selected by the same centroid scores."""

    name: ClassVar[str] = "positional-blocks"
    source: ClassVar[str] = "control"

    def new_plan(self, call: AttentionCall, state: ClusterState, ops: Ops) -> Plan:
        block_map = self.base.new_plan(call, state, ops).block_map
        queries, keys = self.base.clusters(call.tokens)
        query_order, query_offsets = group_by_label(uniform_labels(call, queries), queries)
        key_order, key_offsets = group_by_label(uniform_labels(call, keys), keys)
        query, key, _ = heads_first(call)
        mass = centroid_mass(
            group_means(query, query_order, query_offsets),
            group_means(key, key_order, key_offsets),
            key_offsets.diff(dim=-1),
            call.scale,
        )
        keys_each = keys_per_query_group(block_map).float()
        weight = block_map.query_offsets.diff(dim=-1).float()
        average = (keys_each * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
        budget = average.expand(-1, -1, queries)
        selected = select_budget(mass, key_offsets.diff(dim=-1), budget)
        return Plan(BlockMap(selected, query_order, query_offsets, key_order, key_offsets))


@dataclass(frozen=True, kw_only=True)
class RoundedSums(SVG2):
    """svg2 with masses and their cumulative sums in bfloat16, as in its published code."""

    name: ClassVar[str] = "sums-in-bfloat16"
    source: ClassVar[str] = "control"

    def choose(self, call: AttentionCall, clusters: Clusters, ops: Ops) -> Plan:
        sizes = clusters.key_offsets.diff(dim=-1)
        centroids = (clusters.query_centroids, clusters.key_centroids)
        mass = centroid_mass(*centroids, sizes, call.scale).bfloat16()
        return Plan(clusters.block_map(select_top_p(mass, self.top_p, self.min_key_share)))


@dataclass(frozen=True, kw_only=True)
class CachedDifference(ReTtention):
    """The rule of DiTFastAttn (arXiv 2406.08552).

    A sparse step adds to the output within the mask what the last full step had more than the mask.
    """

    name: ClassVar[str] = "cached-difference"
    source: ClassVar[str] = "control"

    def full_step(self, call: AttentionCall, state: Statistics, ops: Ops) -> Attended | None:
        attended = super().full_step(call, state, ops)
        assert attended is not None
        assert state.block_map is not None
        out, _ = ops.partial(state.block_map, call)
        state.rest = attended.out.transpose(1, 2) - out
        return attended

    def combine(self, out: Tensor, lse: Tensor | None, state: Statistics, ops: Ops) -> Tensor:
        assert state.rest is not None
        return out + state.rest


def select_single_keys(block_map: BlockMap, noise: Tensor, budget: Tensor) -> BlockMap:
    """Return a map over groups of one key each: per query group the ``budget`` keys of the largest noise.

    Args:
        block_map: Map whose query groups are used.
        noise: ``[B, H, Gq, S]``.
        budget: Number of keys, int64 ``[B, H, Gq]``.
    """
    batch, heads, _, size = noise.shape
    rank = noise.argsort(dim=-1, descending=True).argsort(dim=-1)
    order = torch.arange(size).expand(batch, heads, size)
    offsets = torch.arange(size + 1).expand(batch, heads, size + 1)
    selected = rank < budget[..., None]
    return BlockMap(selected, block_map.query_order, block_map.query_offsets, order, offsets)


def uniform_labels(call: AttentionCall, count: int) -> Tensor:
    """Return labels of ``count`` runs of neighbouring tokens of almost equal length, ``[B, H, S]``."""
    batch, size, heads, _ = call.query.shape
    return (torch.arange(size) * count // size).expand(batch, heads, size)
