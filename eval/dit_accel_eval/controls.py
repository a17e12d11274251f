"""Controls for svg2: the same density, another choice of keys. What svg2 adds is what it gains over these.

Each control is a method that first makes svg2's plan for the call, and then spends the very same
number of keys per query cluster in another way. They answer a question, they are not meant to be
fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_accel import SVG2, AttentionCall, Method, Plan, ReTtention
from dit_accel.core.ops import Ops, heads_first
from dit_accel.methods import Attended
from dit_accel.methods.clustered import Clusters, ClusterState
from dit_accel.methods.re_ttention import Statistics
from dit_accel_kernels import (
    BlockMap,
    centroid_mass,
    dense_attention,
    group_by_label,
    select_budget,
    select_top_p,
)


@dataclass(frozen=True)
class Control(Method):
    """A method that changes the plan of ``base``; random choices follow layer, step and ``seed``."""

    base: SVG2 = field(default_factory=SVG2)
    seed: int = 0

    def new_state(self) -> ClusterState:
        return self.base.new_state()

    def generator(self, call: AttentionCall) -> torch.Generator:
        place = (self.seed * 1000 + call.context.step) * 1000 + call.context.layer
        return torch.Generator().manual_seed(2 * place + (call.context.branch == "uncond"))


@dataclass(frozen=True)
class ShuffledLabels(Control):
    """svg2's map on key clusters of the same sizes whose members are drawn at random."""

    name: ClassVar[str] = "shuffled-labels"
    source: ClassVar[str] = "control"

    def new_plan(self, call: AttentionCall, state: ClusterState, ops: Ops) -> Plan:
        block_map = self.base.new_plan(call, state, ops).block_map
        order = shuffled(block_map.key_order, self.generator(call))
        return Plan(replace(block_map, key_order=order))


@dataclass(frozen=True)
class RandomKeys(Control):
    """Each query cluster attends to a random subset of single keys, as many as svg2 gives it."""

    name: ClassVar[str] = "random-keys"
    source: ClassVar[str] = "control"

    def new_plan(self, call: AttentionCall, state: ClusterState, ops: Ops) -> Plan:
        block_map = self.base.new_plan(call, state, ops).block_map
        budget = keys_per_query_group(block_map)
        noise = torch.rand(*budget.shape, call.tokens, generator=self.generator(call))
        return Plan(single_keys(block_map, noise, budget))


@dataclass(frozen=True)
class PositionalBlocks(Control):
    """Uniform blocks of neighbouring tokens in place of clusters, chosen by the same centroid scores."""

    name: ClassVar[str] = "positional-blocks"
    source: ClassVar[str] = "control"

    def new_plan(self, call: AttentionCall, state: ClusterState, ops: Ops) -> Plan:
        block_map = self.base.new_plan(call, state, ops).block_map
        queries, keys = self.base.clusters(call.tokens)
        query_labels, key_labels = (uniform_labels(call, count) for count in (queries, keys))
        query_order, query_offsets = group_by_label(query_labels, queries)
        key_order, key_offsets = group_by_label(key_labels, keys)
        mass = centroid_mass(
            means(call.query.transpose(1, 2), query_labels, queries),
            means(call.key.transpose(1, 2), key_labels, keys),
            key_offsets.diff(dim=-1),
            call.scale,
        )
        share = keys_per_query_group(block_map).float()
        weight = block_map.query_offsets.diff(dim=-1).float()
        average = (share * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
        budget = average.expand(-1, -1, queries)
        selected = select_budget(mass, key_offsets.diff(dim=-1), budget)
        return Plan(BlockMap(selected, query_order, query_offsets, key_order, key_offsets))


@dataclass(frozen=True)
class OracleBlocks(Control):
    """svg2's clusters chosen by their true attention mass per key: what perfect scores would give."""

    name: ClassVar[str] = "oracle-blocks"
    source: ClassVar[str] = "control (upper bound)"

    def new_plan(self, call: AttentionCall, state: ClusterState, ops: Ops) -> Plan:
        block_map = self.base.new_plan(call, state, ops).block_map
        sizes = block_map.key_offsets.diff(dim=-1)
        mass = true_mass(call, block_map)
        density = mass / sizes[:, :, None].clamp(min=1)
        selected = select_budget(density, sizes, keys_per_query_group(block_map).float())
        return Plan(replace(block_map, selected=selected))


@dataclass(frozen=True, kw_only=True)
class RoundedSums(SVG2):
    """svg2 with masses and their cumulative sums in bfloat16, as its published code has them."""

    name: ClassVar[str] = "sums-in-bfloat16"
    source: ClassVar[str] = "control"

    def choose(self, call: AttentionCall, clusters: Clusters, ops: Ops) -> Plan:
        sizes = clusters.key_offsets.diff(dim=-1)
        tables = (clusters.query_centroids, clusters.key_centroids, sizes)
        mass = centroid_mass(*tables, call.scale).bfloat16()
        return Plan(clusters.block_map(select_top_p(mass, self.top_p, self.min_key_share)))


@dataclass(frozen=True, kw_only=True)
class CachedDifference(ReTtention):
    """The rule of DiTFastAttn (arXiv 2406.08552): the mask's output plus what the last full step had more."""

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


@dataclass(frozen=True)
class RoundedAttention(Method):
    """Dense attention of tensors rounded to bfloat16: the floor that differences are compared with."""

    name: ClassVar[str] = "rounded-attention"
    source: ClassVar[str] = "control"

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        return None

    def attend(self, call: AttentionCall, state: Any, ops: Ops) -> Attended:
        tensors = (call.query, call.key, call.value)
        query, key, value = (t.bfloat16().transpose(1, 2) for t in tensors)
        out = functional.scaled_dot_product_attention(query, key, value, scale=call.scale)
        return Attended(out.transpose(1, 2).to(call.query.dtype), torch.ones(()))


@dataclass(frozen=True)
class OtherBackend(Method):
    """Dense attention that sums in another order than the pipeline's own: plain products on a CPU, SDPA's
    memory-efficient kernel on a GPU. The floor that differences are compared with.
    """

    name: ClassVar[str] = "other-backend"
    source: ClassVar[str] = "control"

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        return None

    def attend(self, call: AttentionCall, state: Any, ops: Ops) -> Attended:
        tensors = heads_first(call)
        if call.query.is_cuda:
            with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
                out = functional.scaled_dot_product_attention(*tensors, scale=call.scale)
        else:
            out = dense_attention(*tensors, scale=call.scale)
        return Attended(out.transpose(1, 2), torch.ones(()))


CONTROLS: tuple[type[Control], ...] = (ShuffledLabels, PositionalBlocks, RandomKeys, OracleBlocks)


def keys_per_query_group(block_map: BlockMap) -> Tensor:
    """Number of keys each query group attends to, int64 ``[B, H, Gq]``."""
    sizes = block_map.key_offsets.diff(dim=-1)
    return (block_map.selected * sizes[:, :, None]).sum(-1)


def shuffled(order: Tensor, generator: torch.Generator) -> Tensor:
    """The last axis in random order, another one for every row."""
    noise = torch.rand(order.shape, generator=generator)
    return order.gather(-1, noise.argsort(dim=-1))


def single_keys(block_map: BlockMap, noise: Tensor, budget: Tensor) -> BlockMap:
    """A map over groups of one key each: per query group the ``budget`` keys of the largest noise."""
    batch, heads, _, size = noise.shape
    rank = noise.argsort(dim=-1, descending=True).argsort(dim=-1)
    each = torch.arange(size).expand(batch, heads, size)
    offsets = torch.arange(size + 1).expand(batch, heads, size + 1)
    return BlockMap(
        rank < budget[..., None], block_map.query_order, block_map.query_offsets, each, offsets
    )


def uniform_labels(call: AttentionCall, count: int) -> Tensor:
    """Labels of ``count`` runs of neighbouring tokens of almost equal length, ``[B, H, S]``."""
    batch, size, heads, _ = call.query.shape
    return (torch.arange(size) * count // size).expand(batch, heads, size)


def means(tokens: Tensor, labels: Tensor, count: int) -> Tensor:
    """Mean token of each group, float32 ``[B, H, G, D]``; zero for an empty one."""
    member = torch.nn.functional.one_hot(labels, count).float()  # [B, H, S, G]
    return (member.transpose(-1, -2) @ tokens.float()) / member.sum(2)[..., None].clamp(min=1)


def true_mass(call: AttentionCall, block_map: BlockMap) -> Tensor:
    """Attention mass of each (query group, key group) pair, float32 ``[B, H, Gq, Gk]``; quadratic in S."""
    query, key = call.query.transpose(1, 2).float(), call.key.transpose(1, 2).float()
    weights = (call.scale * query @ key.transpose(-1, -2)).softmax(-1)  # [B, H, S, S]
    for axis, order, offsets in (
        (3, block_map.key_order, block_map.key_offsets),
        (2, block_map.query_order, block_map.query_offsets),
    ):
        index = order[:, :, None] if axis == 3 else order[..., None]
        sums = weights.gather(axis, index.expand_as(weights)).cumsum(axis)
        zero = torch.zeros_like(sums.narrow(axis, 0, 1))
        bounds = offsets[:, :, None] if axis == 3 else offsets[..., None]
        shape = [*weights.shape]
        shape[axis] = offsets.shape[-1]
        weights = torch.cat([zero, sums], axis).gather(axis, bounds.expand(shape)).diff(dim=axis)
    return weights
