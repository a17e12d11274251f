"""SVG-EAR: exact attention where centroids err most, centroids elsewhere (arXiv 2603.08982)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.methods.base import check_share
from dit_accel.methods.clustered import Clustered, Clusters

Selection = Literal["density", "error"]


@dataclass(frozen=True, kw_only=True)
class SVGEar(Clustered):
    """svg2's clusters; a share of the keys is attended exactly, every other key cluster as one key, its
    centroid, merged by log-sum-exp. Nothing is dropped, so the softmax keeps its whole mass.

    Attributes, besides those of `Clustered`:
        density: share of the keys that each query cluster attends to exactly, in [0, 1]; a sequence
            gives one for each head.
        selection: which: by estimated attention mass per token, with the variance of a cluster's keys
            in the estimate (``"density"``), or by the error that their centroid would make per token
            (``"error"``, the paper's, which reads all keys for every query cluster).
        second_order: add the variance of a cluster's keys to the logit of a centroid that stands for
            skipped keys, too: the next term of ``ln sum exp``. It helps where logits are small and
            overshoots where they are large (above 20 or so).
    """

    name: ClassVar[str] = "svg-ear"
    source: ClassVar[str] = "SVG-EAR, arXiv 2603.08982"

    density: float | tuple[float, ...] = 0.15
    selection: Selection = "density"
    second_order: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.density, list):
            object.__setattr__(self, "density", tuple(self.density))
        if not self.densities:
            raise ValueError("density must be a share, or one for each head, got none")
        for share in self.densities:
            check_share("density", share)
        if self.selection not in ("density", "error"):
            raise ValueError(f"selection must be density or error, got {self.selection!r}")

    @property
    def densities(self) -> tuple[float, ...]:
        """One for all heads, or one for each."""
        return self.density if isinstance(self.density, tuple) else (self.density,)

    def choose(self, call: AttentionCall, clusters: Clusters, ops: Ops) -> Plan:
        _, key, value = heads_first(call)
        order, offsets = clusters.key_order, clusters.key_offsets
        if self.selection == "error":
            score = ops.centroid_error(
                clusters.query_centroids, key, value, order, offsets, call.scale
            )
        else:
            means = clusters.key_centroids
            variance = ops.group_variance(key, order, offsets, means)
            score = ops.centroid_logits(clusters.query_centroids, means, call.scale, variance)
        heads = call.query.shape[2]
        if len(self.densities) not in (1, heads):
            raise ValueError(f"density has {len(self.densities)} shares for {heads} heads")
        keys = [share * call.tokens for share in self.densities]
        selected = ops.select_budget(score, offsets.diff(dim=-1), keys)
        return Plan(
            clusters.map_of(selected), skipped="second-order" if self.second_order else "centroid"
        )
