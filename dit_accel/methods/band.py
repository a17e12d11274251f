"""Static masks that resemble those of Re-ttention (arXiv 2505.22918): neighbors in raster order, in every frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops
from dit_accel.methods.base import Method, check_count, check_share
from dit_accel.methods.blocks import frame_runs, nearest, static_map


@dataclass(frozen=True, kw_only=True)
class Band(Method):
    """Attention of each query to the keys near its own raster index, in all frames.

    It resembles the published masks, and is none of them. They are windows of single tokens that are cut at the edges
    of a frame. Here whole groups of tokens are kept, and the window is shifted inward at an edge.

    Attributes:
        density: Share of the keys, in [0, 1].
        block: Tokens in a group of queries, at most those of a frame. A group of keys has a quarter of that.
    """

    name: ClassVar[str] = "band"
    source: ClassVar[str] = "resembles the masks of Re-ttention, arXiv 2505.22918"
    spatial: ClassVar[bool] = True
    static: ClassVar[bool] = True

    density: float = 0.1
    block: int = 64

    def __post_init__(self) -> None:
        check_share("density", self.density)
        check_count("block", self.block)

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        device = call.query.device
        with ops.timer("selection", device):
            frames, per_frame = call.layout.frames, call.layout.height * call.layout.width
            block = min(self.block, per_frame)
            queries = frame_runs(call.layout, block, device)
            keys = frame_runs(call.layout, max(1, block // 4), device)
            # All frames are alike, so one frame is planned.
            query_place, key_place = (g.place.view(frames, -1, 2)[0, :, 1] for g in (queries, keys))
            distance = (query_place[:, None] - key_place).abs()
            sizes = keys.sizes.view(frames, -1)[0]
            keep = nearest(distance, sizes, self.density * keys.order.numel() / frames)
            return Plan(static_map(call, queries, keys, keep.repeat(frames, frames)))
