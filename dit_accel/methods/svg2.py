"""Sparse VideoGen2: semantic-aware permutation (Yang et al., arXiv 2505.18875)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops
from dit_accel.methods.base import check_share
from dit_accel.methods.clustered import Clustered, Clusters


@dataclass(frozen=True, kw_only=True)
class SVG2(Clustered):
    """Attention of each cluster of queries to the clusters of keys that hold most of its mass.

    Attributes:
        top_p: Share of the estimated attention mass that the selected key clusters reach, in (0, 1].
        min_key_share: Smallest share of the key clusters that every query cluster selects, in [0, 1].
    """

    name: ClassVar[str] = "svg2"
    source: ClassVar[str] = "Sparse VideoGen2, arXiv 2505.18875"

    top_p: float = 0.9
    min_key_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("top_p", self.top_p, above=0)
        check_share("min_key_share", self.min_key_share)

    def choose(self, call: AttentionCall, clusters: Clusters, ops: Ops) -> Plan:
        selected = ops.select_top_p(
            clusters.query_centroids,
            clusters.key_centroids,
            clusters.key_offsets.diff(dim=-1),
            call.scale,
            self.top_p,
            self.min_key_share,
        )
        return Plan(clusters.block_map(selected))
