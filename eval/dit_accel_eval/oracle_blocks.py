"""svg2 with perfect scores: the upper bound that its estimated scores are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from dit_accel import SVG2, AttentionCall, Method, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.methods.clustered import ClusterState
from dit_accel_kernels import BlockMap, select_budget


@dataclass(frozen=True)
class OracleBlocks(Method):
    """svg2's clusters, chosen by their true attention mass per key. Each query cluster gets as many keys as in svg2.

    Attributes:
        base: Method that makes the clusters and sets the number of keys.
    """

    name: ClassVar[str] = "oracle-blocks"
    source: ClassVar[str] = "control (upper bound)"

    base: SVG2 = field(default_factory=SVG2)

    def new_state(self) -> ClusterState:
        return self.base.new_state()

    def new_plan(self, call: AttentionCall, state: ClusterState, ops: Ops) -> Plan:
        block_map = self.base.new_plan(call, state, ops).block_map
        sizes = block_map.key_offsets.diff(dim=-1)  # [B, H, Gk]
        mass_per_key = true_mass(call, block_map) / sizes[:, :, None].clamp(min=1)
        budget = keys_per_query_group(block_map).float()
        return Plan(replace(block_map, selected=select_budget(mass_per_key, sizes, budget)))


def keys_per_query_group(block_map: BlockMap) -> Tensor:
    """Return the number of keys that each query group attends to, int64 ``[B, H, Gq]``."""
    sizes = block_map.key_offsets.diff(dim=-1)  # [B, H, Gk]
    return (block_map.selected * sizes[:, :, None]).sum(-1)


def true_mass(call: AttentionCall, block_map: BlockMap) -> Tensor:
    """Return the attention mass of each (query group, key group) pair, float32 ``[B, H, Gq, Gk]``.

    Memory is quadratic in the number of tokens.
    """
    query, key, _ = (tensor.float() for tensor in heads_first(call))
    weights = (call.scale * query @ key.transpose(-1, -2)).softmax(-1)  # [B, H, S, S]
    by_key = _sum_groups(weights, block_map.key_order, block_map.key_offsets)  # [B, H, S, Gk]
    by_query = by_key.transpose(-1, -2)  # [B, H, Gk, S]
    mass = _sum_groups(by_query, block_map.query_order, block_map.query_offsets)
    return mass.transpose(-1, -2)


def _sum_groups(values: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    """Return the sums over groups of the last axis: ``[B, H, N, S]`` to ``[B, H, N, G]``."""
    grouped = values.gather(3, order[:, :, None].expand_as(values))
    sums = torch.nn.functional.pad(grouped.cumsum(3), (1, 0))  # [B, H, N, S + 1]
    ends = offsets[:, :, None].expand(*values.shape[:3], -1)
    return sums.gather(3, ends).diff(dim=3)
