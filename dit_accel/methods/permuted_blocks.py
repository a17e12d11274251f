"""Permuted block-sparse attention (PBS-Attn, arXiv 2510.21270): sort keys by importance, then choose blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import Refreshed, check_count, check_share
from dit_accel.methods.blocks import uniform_blocks
from dit_accel_kernels import (
    BlockMap,
    group_logits,
    group_means,
    sampled_importance,
    select_top_p,
    spread_rows,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PermutedBlocks(Refreshed):
    """Attention to blocks of keys that were sorted by importance, so that important keys share blocks.

    Sampled queries estimate the importance. Each block of queries keeps the key blocks that hold ``top_p`` of its
    estimated mass, and always the first block of keys.

    Attributes:
        top_p: Share of the estimated mass, in (0, 1].
        samples: Number of queries that estimate the importance, spread over the whole sequence.
        block: Tokens in a block.
        segment: Tokens in a segment, a multiple of the block. Keys are sorted within their segment. A block of queries
            always keeps its own segment and the block with token 0, and ``top_p`` counts the other segments. None
            sorts the whole sequence.
    """

    name: ClassVar[str] = "permuted-blocks"
    source: ClassVar[str] = "PBS-Attn, arXiv 2510.21270"

    top_p: float = 0.9
    samples: int = 128
    block: int = 128
    segment: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("top_p", self.top_p, above=0)
        check_count("samples", self.samples)
        check_count("block", self.block)
        if self.segment is not None and (self.segment < 1 or self.segment % self.block):
            raise InvalidSettings(
                f"segment must be a multiple of block {self.block}, got {self.segment}"
            )

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        query, key, _ = heads_first(call)
        with ops.timer("selection", call.query.device):
            rows = spread_rows(call.tokens, self.samples, call.query.device)
            importance = sampled_importance(query, key, rows, call.scale)  # [B, H, S]
            raster, offsets = uniform_blocks(call, self.block)
            key_order = sort_keys(importance, min(self.segment or call.tokens, call.tokens))
            logits = group_logits(
                group_means(query, raster, offsets),
                group_means(key, key_order, offsets),
                offsets.diff(dim=-1),
                call.scale,
            )
            if self.segment is None:
                selected = select_top_p(logits.softmax(-1), self.top_p)
                selected[..., 0] = True
            else:
                selected = self.select_between_segments(logits, key_order)
            return Plan(BlockMap(selected, raster, offsets, key_order, offsets))

    def select_between_segments(self, logits: Tensor, key_order: Tensor) -> Tensor:
        """Select blocks of other segments by their mass, and always the own segment and token 0."""
        assert self.segment is not None
        blocks = torch.arange(logits.shape[-1], device=logits.device)
        segment = blocks // (self.segment // self.block)
        own = segment[:, None] == segment
        mass = logits.masked_fill(own, -torch.inf).softmax(-1)
        # The mass is NaN if there is no other segment.
        selected = select_top_p(mass.nan_to_num(0.0), self.top_p)
        first = (key_order == 0).int().argmax(-1) // self.block  # [B, H]
        return selected | own | (blocks == first[..., None, None])


def sort_keys(importance: Tensor, segment: int) -> Tensor:
    """Return token indices by falling importance within segments, ``[B, H, S]``. A part of a segment stays unsorted."""
    tokens = importance.shape[-1]
    whole = tokens // segment * segment
    segments = importance[..., :whole].unflatten(-1, (-1, segment))
    inside = segments.argsort(dim=-1, descending=True, stable=True)
    index = torch.arange(tokens, device=importance.device)
    order = (inside + index[:whole:segment, None]).flatten(-2)
    rest = index[whole:].expand(*importance.shape[:-1], tokens - whole)
    return torch.cat([order, rest], -1)
