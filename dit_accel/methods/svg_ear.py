"""SVG-EAR (arXiv 2603.08982): exact attention for the most important clusters, centroids for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import check_share
from dit_accel.methods.clustered import Clustered, Clusters

Selection = Literal["density", "error"]


@dataclass(frozen=True, kw_only=True)
class SVGEar(Clustered):
    """Exact attention to a share of the keys, and attention to centroids for all other clusters.

    The clusters are those of `SVG2`. The two parts are merged by log-sum-exp. No key is dropped, so the softmax keeps
    its whole mass.

    Attributes:
        density: Share of the keys that each query cluster attends to exactly, in [0, 1]. A sequence has one share for
            each head.
        selection: How clusters are selected. ``"density"`` uses the estimated attention mass per token, including the
            variance of a cluster's keys. ``"error"`` is the paper's rule: the error per token that the centroid would
            make. It reads all keys for every query cluster.
        second_order: True adds the variance of a cluster's keys to the logit of its centroid, the next term of
            ``ln sum exp``. It helps if logits are small, and overshoots if they are large (above about 20).
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
            raise InvalidSettings(
                "density must be a share, or one for each head, got an empty sequence"
            )
        for share in self.densities:
            check_share("density", share)
        if self.selection not in ("density", "error"):
            raise InvalidSettings(f"selection must be density or error, got {self.selection!r}")

    @property
    def densities(self) -> tuple[float, ...]:
        """Return one density for all heads, or one for each head."""
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
            raise InvalidSettings(f"density has {len(self.densities)} shares for {heads} heads")
        keys = [share * call.tokens for share in self.densities]
        selected = ops.select_budget(score, offsets.diff(dim=-1), keys)
        return Plan(
            clusters.block_map(selected),
            skipped="second-order" if self.second_order else "centroid",
        )
