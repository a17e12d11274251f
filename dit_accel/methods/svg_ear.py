"""SVG-EAR (arXiv 2603.08982) with one error budget for all heads, and expansions in place of centroids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import check_share, refuse_idle
from dit_accel.methods.clustered import Clustered, Clusters
from dit_accel_kernels import Skipped, group_logits, select_top_p_budget

if TYPE_CHECKING:
    from torch import Tensor

Selection = Literal["expansion", "density", "error"]
Budget = Literal["shared", "query", "top_p"]


@dataclass(frozen=True, kw_only=True)
class SVGEar(Clustered):
    """Exact attention to a share of the keys, and attention to what stands for all other clusters.

    The clusters are those of `SVG2`. Both parts share one softmax. No key is dropped, so the softmax keeps its whole
    mass. The paper's own settings are the recipe ``svg-ear:published``.

    Attributes:
        refresh: Number of steps that use one plan. With 1, every step makes a new plan, which takes less memory.
        density: Share of the (query, key) pairs that are attended to exactly, in [0, 1]. A sequence has one share for
            each head. It has no effect with the budget ``"top_p"``.
        selection: How clusters are selected. ``"expansion"`` uses the error that the expansion of a cluster is
            estimated to make, from the variances of clusters. ``"density"`` uses the estimated attention mass per
            token, including the variance of a cluster's keys. ``"error"`` is the paper's rule: the error per token
            that the centroid would make. It reads all keys for every query cluster.
        budget: Who shares the exact keys. ``"shared"`` spends them where the score is largest, over all query clusters
            of all heads, or of each head if every head has its share. ``"query"`` gives every query cluster the same
            number. ``"top_p"`` is the paper's rule: every query cluster gets as many as `SVG2` would select for it.
        top_p: Share of the estimated attention mass that the budget ``"top_p"`` would reach, in (0, 1].
        min_key_share: Share of the key clusters, in [0, 1], that the budget ``"top_p"`` reserves for those with the
            most mass. The budget pays for twice as many at least.
        gamma: Weight of the cost in the budget ``"top_p"``, at least 0. Clusters are ranked by log error - gamma log
            size. With 1, the error per key counts; with 0, the error of the whole cluster.
        skipped: What stands for a cluster that is not selected. ``"expansion"`` is what the mean query of a query
            cluster gets from it: weighted mean key and value, and a logit that is exact for the mean query and linear
            around it. ``"centroid"`` is the paper's: the plain mean key and value.
    """

    name: ClassVar[str] = "svg-ear"
    source: ClassVar[str] = "SVG-EAR, arXiv 2603.08982"

    refresh: int = 2
    density: float | tuple[float, ...] = 0.15
    selection: Selection = "expansion"
    budget: Budget = "shared"
    top_p: float = 0.9
    min_key_share: float = 0.1
    gamma: float = 1.0
    skipped: Skipped = "expansion"

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
        check_share("top_p", self.top_p, above=0)
        check_share("min_key_share", self.min_key_share)
        if self.gamma < 0:
            raise InvalidSettings(f"gamma must be at least 0, got {self.gamma}")
        for name, kind in (("selection", Selection), ("budget", Budget), ("skipped", Skipped)):
            choices = get_args(kind)
            if getattr(self, name) not in choices:
                accepted = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise InvalidSettings(f"{name} must be {accepted}, got {getattr(self, name)!r}")
        self._refuse_idle_knobs()

    def _refuse_idle_knobs(self) -> None:
        """Raise InvalidSettings if a knob is set that has no effect with the budget."""
        top_p = self.budget == "top_p"
        idle, needed = (
            (("density",), "shared or query")
            if top_p
            else (("top_p", "min_key_share", "gamma"), "top_p")
        )
        refuse_idle(
            self, idle, f"with budget {self.budget}: set budget to {needed}, or leave it out"
        )

    @property
    def densities(self) -> tuple[float, ...]:
        """Return one density for all heads, or one for each head."""
        return self.density if isinstance(self.density, tuple) else (self.density,)

    def choose(self, call: AttentionCall, clusters: Clusters, ops: Ops) -> Plan:
        heads = call.query.shape[2]
        if len(self.densities) not in (1, heads):
            raise InvalidSettings(
                f"density has {len(self.densities)} shares for {heads} heads: give one for all, or {heads}"
            )
        score = self._score(call, clusters, ops)
        key_sizes = clusters.key_offsets.diff(dim=-1)
        if self.budget == "top_p":
            selected = self._select_top_p(score, call, clusters, ops)
        elif self.budget == "query":
            keys = [share * call.tokens for share in self.densities]
            selected = ops.select_budget(score, key_sizes, keys)
        else:
            query_sizes = clusters.query_offsets.diff(dim=-1)
            selected = ops.select_shared(score, query_sizes, key_sizes, self.densities)
        return Plan(clusters.block_map(selected), skipped=self.skipped)

    def _select_top_p(
        self, score: Tensor, call: AttentionCall, clusters: Clusters, ops: Ops
    ) -> Tensor:
        """Select by the paper's rule, from the scores per key, bool ``[B, H, Gq, Gk]``."""
        sizes = clusters.key_offsets.diff(dim=-1)
        with ops.timer("selection", score.device):
            error = score if self.selection == "density" else score.log()
            if self.selection == "expansion":  # errors add up in squares
                error = 2 * error
            log_size = sizes.clamp(min=1).float().log()[:, :, None]
            centroids = (clusters.query_centroids, clusters.key_centroids)
            return select_top_p_budget(
                error + (1 - self.gamma) * log_size,
                group_logits(*centroids, sizes, call.scale),
                sizes,
                self.top_p,
                self.min_key_share,
            )

    def _score(self, call: AttentionCall, clusters: Clusters, ops: Ops) -> Tensor:
        """Return the score by which pairs of clusters are selected, float32 ``[B, H, Gq, Gk]``."""
        query, key, value = heads_first(call)
        key_groups = (clusters.key_order, clusters.key_offsets)
        if self.selection == "error":
            return ops.centroid_error(clusters.query_centroids, key, value, *key_groups, call.scale)
        if self.selection == "density":
            means = clusters.key_centroids
            variance = ops.group_variance(key, *key_groups, means)
            score = ops.centroid_logits(clusters.query_centroids, means, call.scale, variance)
            # A shared budget compares query clusters, so it needs shares of each one's mass.
            if self.budget == "shared":
                score = ops.mass_per_key(score, key_groups[1])
            return score
        query_groups = (clusters.query_order, clusters.query_offsets)
        return ops.expansion_error(
            ops.group_statistics(query, *query_groups, clusters.query_centroids),
            ops.group_statistics(key, *key_groups, clusters.key_centroids),
            ops.group_statistics(value, *key_groups),
            key_groups[1].diff(dim=-1),
            call.scale,
        )
