"""How stable svg2's clusters are: from step to step, and between queries and keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from dit_accel import SVG2, AttentionCall, Method, Profile, Schedule
from dit_accel.core.ops import Ops
from dit_accel.generation.render import render_with
from dit_accel.generation.settings import RenderSettings
from dit_accel.methods.clustered import ClusterState

HEADS = 4  # of a layer, the first ones


@dataclass
class WatchState(ClusterState):
    """Also the clusters of the last step, of queries and of keys, ``[H, S]``."""

    labels: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class ClusterWatch(Method):
    """Clusters the calls of some layers as svg2 does, warm-started, and runs them dense.

    Attributes:
        base: whose clusters.
        rows: agreement by layer, branch and step.
    """

    name: ClassVar[str] = "cluster-watch"
    source: ClassVar[str] = "-"

    base: SVG2 = field(default_factory=SVG2)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def new_state(self) -> WatchState:
        return WatchState()

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        return None

    def attend(self, call: AttentionCall, state: WatchState, ops: Ops) -> None:
        if call.context.layer not in {0, call.context.num_layers // 2, call.context.num_layers - 1}:
            return
        block_map = self.base.new_plan(call.visual(), state, ops).block_map
        queries = labels_of(block_map.query_order, block_map.query_offsets)
        keys = labels_of(block_map.key_order, block_map.key_offsets)
        before, state.labels = state.labels, (queries, keys)
        self.rows.append(
            {
                "layer": call.context.layer,
                "step": call.context.step,
                "branch": call.context.branch,
                "queries": agreement(queries, before[0]) if before else None,
                "keys": agreement(keys, before[1]) if before else None,
                "queries_and_keys": agreement(queries, keys),
            }
        )


def labels_of(order: Tensor, offsets: Tensor) -> Tensor:
    """Group of each token, ``[H, S]``, of the first sample and heads, from an order grouped by it."""
    order, offsets = order[0, :HEADS].cpu(), offsets[0, :HEADS].cpu()
    groups = (offsets[:, 1:, None] <= order.new_tensor(range(order.shape[-1]))).sum(1)  # [H, S]
    return groups.scatter(1, order, groups.clone())


def agreement(first: Tensor, second: Tensor) -> float:
    """Adjusted Rand index, mean over heads: 1 for the same clusters, 0 for what chance gives."""
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    values = [adjusted_rand_score(a, b) for a, b in pairs]
    return sum(values) / len(values)


def stability(pipe: Any, case: RenderSettings) -> list[dict[str, Any]]:
    """Agreement of clusters in the first, the middle and the last layer, in every step of one dense run; a
    row per layer and step, of the first branch.
    """
    watch = ClusterWatch()
    everywhere = Schedule(dense_steps=0.0, min_tokens=0)
    render_with(pipe, case.as_dense(), Profile(watch, everywhere))
    branch = watch.rows[0]["branch"] if watch.rows else None
    return [row for row in watch.rows if row["branch"] == branch]


def by_layer(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Means over steps."""
    for layer in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == layer]
        line: dict[str, Any] = {"layer": layer}
        for name in ("queries", "keys", "queries_and_keys"):
            values = [row[name] for row in own if row[name] is not None]
            line[name] = sum(values) / len(values) if values else None
        yield line
