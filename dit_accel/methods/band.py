"""Static masks in the style of Re-ttention (arXiv 2505.22918): neighbors in raster order, in every frame."""

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

    Attributes:
        density: Share of the keys, in [0, 1].
        block: Tokens in a group of queries. A group of keys has a quarter of that.
    """

    name: ClassVar[str] = "band"
    source: ClassVar[str] = "the masks of Re-ttention, arXiv 2505.22918"
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
            queries = frame_runs(call.layout, self.block, device)
            keys = frame_runs(call.layout, max(1, self.block // 4), device)
            distance = (queries.place[:, None, 1] - keys.place[None, :, 1]).abs()
            keep = nearest(distance, keys.sizes, self.density * keys.order.numel())
            return Plan(static_map(call, queries, keys, keep))
