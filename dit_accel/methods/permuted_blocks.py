"""Permuted block-sparse attention (PBS-Attn, arXiv 2510.21270): sort keys by importance, then choose blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.methods.base import Refreshed, check_count, check_share
from dit_accel.methods.blocks import uniform_blocks
from dit_accel_kernels import (
    BlockMap,
    centroid_mass,
    group_means,
    sampled_importance,
    select_top_p,
    spread_rows,
)


@dataclass(frozen=True, kw_only=True)
class PermutedBlocks(Refreshed):
    """Attention to blocks of keys that were sorted by importance, so that important keys share blocks.

    Sampled queries estimate the importance. Each block of queries keeps the key blocks that hold ``top_p`` of its
    estimated mass, and always the first block of keys. The paper sorts within segments, for a causal mask, and always
    keeps a query's own segment and the block with token 0. Here the whole sequence is one segment.

    Attributes:
        top_p: Share of the estimated mass, in (0, 1].
        samples: Number of queries that estimate the importance, spread over the whole sequence.
        block: Tokens in a block.
    """

    name: ClassVar[str] = "permuted-blocks"
    source: ClassVar[str] = "PBS-Attn, arXiv 2510.21270"

    top_p: float = 0.9
    samples: int = 128
    block: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("top_p", self.top_p, above=0)
        check_count("samples", self.samples)
        check_count("block", self.block)

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        query, key, _ = heads_first(call)
        with ops.timer("selection", call.query.device):
            rows = spread_rows(call.tokens, self.samples, call.query.device)
            importance = sampled_importance(query, key, rows, call.scale)  # [B, H, S]
            raster, offsets = uniform_blocks(call, self.block)
            key_order = importance.argsort(dim=-1, descending=True, stable=True)
            mass = centroid_mass(
                group_means(query, raster, offsets),
                group_means(key, key_order, offsets),
                offsets.diff(dim=-1),
                call.scale,
            )
            selected = select_top_p(mass, self.top_p)
            selected[..., 0] = True
            return Plan(BlockMap(selected, raster, offsets, key_order, offsets))
