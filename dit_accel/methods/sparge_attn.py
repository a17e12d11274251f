"""SpargeAttn (arXiv 2502.18137): choose blocks by their means, and trust means of self-similar blocks alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import Refreshed, check_between, check_count, check_share
from dit_accel.methods.blocks import for_heads, hilbert_order, uniform_blocks
from dit_accel_kernels import (
    BlockMap,
    centroid_logits,
    group_means,
    select_top_cdf,
    select_top_count,
    self_similarity,
)

if TYPE_CHECKING:
    from torch import Tensor

Order = Literal["raster", "hilbert"]
# The released code takes these if nothing is given.
CDF_THRESHOLD = 0.98
SIMILARITY_THRESHOLD = 0.6


@dataclass(frozen=True, kw_only=True)
class SpargeAttn(Refreshed):
    """Attention to blocks of keys that are chosen by the attention between means of blocks.

    The mean cosine between the tokens of a block is its self-similarity. A block whose self-similarity is not above
    a threshold has no meaningful mean, so all of its pairs are computed, as queries and as keys. The softmax over the
    means of the other blocks of keys decides the rest.

    Attributes:
        cdf_threshold: Each block of queries keeps the largest blocks of keys while their estimated mass is at most
            this share, in (0, 1]. 1 keeps all. None is 0.98, if top_k is not given.
        top_k: Share of the blocks of keys that each block of queries keeps, in (0, 1]. It replaces cdf_threshold.
        similarity_threshold: Self-similarity that a block has to exceed, in [-1, 1]. Below 0 every block does. None is
            0.6 with cdf_threshold, and no threshold with top_k, like the defaults of the released code.
        query_block: Tokens in a block of queries.
        key_block: Tokens in a block of keys.
        order: Order in which tokens are cut into blocks. ``"raster"`` is their own order. ``"hilbert"`` follows a
            Hilbert curve through the grid of tokens.
    """

    name: ClassVar[str] = "sparge-attn"
    source: ClassVar[str] = "SpargeAttn, arXiv 2502.18137"

    cdf_threshold: float | None = None
    top_k: float | None = None
    similarity_threshold: float | None = None
    query_block: int = 128
    key_block: int = 64
    order: Order = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cdf_threshold is not None and self.top_k is not None:
            raise InvalidSettings("cdf_threshold and top_k exclude each other: give one of them")
        for name in ("cdf_threshold", "top_k"):
            if getattr(self, name) is not None:
                check_share(name, getattr(self, name), above=0)
        if self.similarity_threshold is not None:
            check_between("similarity_threshold", self.similarity_threshold, -1, 1)
        check_count("query_block", self.query_block)
        check_count("key_block", self.key_block)
        if self.order not in ("raster", "hilbert"):
            raise InvalidSettings(f"order must be raster or hilbert, got {self.order!r}")

    @property
    def needs_grid(self) -> bool:
        return self.order == "hilbert"

    @property
    def least_similarity(self) -> float:
        """Return the self-similarity that a block has to exceed."""
        if self.similarity_threshold is not None:
            return self.similarity_threshold
        return SIMILARITY_THRESHOLD if self.top_k is None else -1.0

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        query, key, _ = heads_first(call)
        with ops.timer("selection", call.query.device):
            order, query_offsets = uniform_blocks(call, self.query_block)
            _, key_offsets = uniform_blocks(call, self.key_block)
            if self.order == "hilbert":
                device = call.query.device
                curve = ("hilbert", call.layout, device)
                path = ops.shared(curve, lambda: hilbert_order(call.layout, device))
                order = for_heads(path, call)
            logits = centroid_logits(
                group_means(query, order, query_offsets),
                group_means(key, order, key_offsets),
                call.scale,
            )
            if self.least_similarity < 0:
                selected = self._select(logits)
            else:
                no_mean = torch.zeros_like(query[:, :, :1], dtype=torch.float32)
                queries = self._are_similar(query, order, query_offsets, no_mean)[..., None]
                key_mean = key.float().mean(2, keepdim=True)
                keys = self._are_similar(key, order, key_offsets, key_mean)[:, :, None]
                selected = self._select(logits.masked_fill(~keys, -torch.inf)) | ~queries | ~keys
            return Plan(BlockMap(selected, order, query_offsets, order, key_offsets))

    def _are_similar(self, tokens: Tensor, order: Tensor, offsets: Tensor, mean: Tensor) -> Tensor:
        """Return the blocks whose self-similarity exceeds the threshold, bool ``[B, H, G]``."""
        return self_similarity(tokens, order, offsets, mean) > self.least_similarity

    def _select(self, logits: Tensor) -> Tensor:
        """Select blocks of keys by the logits of the means, bool ``[B, H, Gq, Gk]``."""
        # The mass is NaN if no block of keys is similar, but then all of them are kept.
        mass = logits.softmax(-1)
        if self.top_k is not None:
            count = int(self.top_k * mass.shape[-1] + 1e-9)  # 0.29 of 100 blocks are 29
            return select_top_count(mass, max(1, count))
        threshold = CDF_THRESHOLD if self.cdf_threshold is None else self.cdf_threshold
        return select_top_cdf(mass, threshold)
