"""Measure how stable svg2's clusters are from step to step, and how well those of queries and keys agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from dit_accel import SVG2, AttentionCall, Method, Profile
from dit_accel.core.ops import Ops
from dit_accel.generation.render import render_with
from dit_accel.generation.settings import RenderSettings
from dit_accel.methods.clustered import ClusterState
from dit_accel_eval.settings import ALL_SPARSE

# Number of heads of a layer that are compared.
HEADS = 4


@dataclass
class WatchState(ClusterState):
    """State of svg2, with the cluster of each query and of each key in the last step, ``[H, S]``."""

    labels: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class ClusterWatch(Method):
    """Method that clusters the calls of three layers as svg2 does, and then runs them dense.

    Attributes:
        base: Method that makes the clusters.
        rows: Agreement by layer, branch and step, which the run fills in.
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
        context = call.context
        if context.layer not in {0, context.num_layers // 2, context.num_layers - 1}:
            return
        block_map = self.base.new_plan(call.visual(), state, ops).block_map
        queries = group_labels(block_map.query_order, block_map.query_offsets)
        keys = group_labels(block_map.key_order, block_map.key_offsets)
        last, state.labels = state.labels, (queries, keys)
        self.rows.append(
            {
                "layer": context.layer,
                "step": context.step,
                "branch": context.branch,
                "queries": agreement(queries, last[0]) if last else None,
                "keys": agreement(keys, last[1]) if last else None,
                "queries_and_keys": agreement(queries, keys),
            }
        )


def group_labels(order: Tensor, offsets: Tensor) -> Tensor:
    """Return the group of each token, ``[H, S]``, in the first sample and the first heads.

    Args:
        order: Tokens sorted by group, ``[B, H, S]``.
        offsets: Start of each group in ``order``, ``[B, H, G + 1]``.
    """
    order, offsets = order[0, :HEADS].cpu(), offsets[0, :HEADS].cpu()
    groups = (offsets[:, 1:, None] <= order.new_tensor(range(order.shape[-1]))).sum(1)  # [H, S]
    return groups.scatter(1, order, groups.clone())


def agreement(first: Tensor, second: Tensor) -> float:
    """Return the adjusted Rand index, mean over heads: 1 for equal clusters, 0 for random ones."""
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    values = [float(adjusted_rand_score(a, b)) for a, b in pairs]
    return sum(values) / len(values)


def stability(pipe: Any, case: RenderSettings) -> list[dict[str, Any]]:
    """Render a clip dense, and return the agreement of clusters in its first, middle and last layer.

    Each row is a layer and a step of the first branch.
    """
    watch = ClusterWatch()
    render_with(pipe, case.as_dense(), Profile(watch, ALL_SPARSE))
    branch = watch.rows[0]["branch"] if watch.rows else None
    return [row for row in watch.rows if row["branch"] == branch]


def by_layer(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the means over steps, a row per layer."""
    for layer in dict.fromkeys(row["layer"] for row in rows):
        means: dict[str, Any] = {"layer": layer}
        for name in ("queries", "keys", "queries_and_keys"):
            values = [r[name] for r in rows if r["layer"] == layer and r[name] is not None]
            means[name] = sum(values) / len(values) if values else None
        yield means
