"""Top-k blocks by pooled scores, the sparse branch of SLA (arXiv 2509.24006) and of VSA (arXiv 2505.13389)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops, heads_first
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import Refreshed, check_count, check_share
from dit_accel.methods.blocks import check_sizes, tiles, uniform_blocks
from dit_accel_kernels import BlockMap, centroid_logits, group_means, select_top_count

# Block of SLA if neither tile nor block is given.
BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class TopKBlocks(Refreshed):
    """Attention of each block of queries to a fixed number of blocks of keys, whose means score highest.

    All other keys are dropped. This is the sparse branch of models that were trained with SLA or VSA. Their learned
    branches are not there: the linear attention of SLA, and the gated attention between means of VSA.

    Attributes:
        density: Share of the blocks of keys, in (0, 1]. With block the number is rounded down, and with tile it is
            rounded up, as in the released code. At least one block is kept.
        block: Tokens in a block, neighbors in raster order. This is SLA. None is 64, if tile is not given.
        tile: Tokens in a box along (frames, rows, columns). Boxes replace blocks. This is VSA, with (4, 4, 4).
    """

    name: ClassVar[str] = "topk-blocks"
    source: ClassVar[str] = "SLA, arXiv 2509.24006; VSA, arXiv 2505.13389"

    density: float = 0.3
    block: int | None = None
    tile: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("density", self.density, above=0)
        if self.block is not None and self.tile is not None:
            raise InvalidSettings("block and tile exclude each other: give one of them")
        if self.block is not None:
            check_count("block", self.block)
        if self.tile is not None:
            # A list has no hash.
            object.__setattr__(self, "tile", check_sizes("tile", self.tile))

    @property
    def needs_grid(self) -> bool:
        return self.tile is not None

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        query, key, _ = heads_first(call)
        tile = self.tile
        with ops.timer("selection", call.query.device):
            if tile is None:
                order, offsets = uniform_blocks(call, self.block or BLOCK)
            else:
                layout, device = call.layout, call.query.device
                boxes = ops.shared(
                    ("boxes", tile, layout, device),
                    lambda: tiles(layout, tile, device, equal=False),
                )
                order, offsets = boxes.for_call(call)
            logits = centroid_logits(
                group_means(query, order, offsets), group_means(key, order, offsets), call.scale
            )
            selected = select_top_count(logits, self.blocks_to_keep(call.tokens, logits.shape[-1]))
            return Plan(BlockMap(selected, order, offsets, order, offsets))

    def blocks_to_keep(self, tokens: int, blocks: int) -> int:
        """Return the number of blocks of keys that each block of queries keeps.

        The density of boxes counts full boxes, ``tokens / prod(tile)`` of them, as in the released code of VSA.

        Args:
            tokens: Number of tokens.
            blocks: Number of blocks, those that are not full included.
        """
        if self.density >= 1:
            return blocks
        if self.tile is None:
            return max(1, int(self.density * blocks + 1e-9))
        full = tokens / math.prod(self.tile)
        return min(blocks, max(1, math.ceil(self.density * full - 1e-9)))
