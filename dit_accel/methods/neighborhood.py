"""Static windows in space and time: neighborhood attention on tiles (arXiv 2504.16922, 2502.04507)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import Method, check_share
from dit_accel.methods.blocks import nearest, static_map, tiles


@dataclass(frozen=True, kw_only=True)
class Neighborhood(Method):
    """Attention of each tile of the token grid to the tiles around it, as in sliding tile attention.

    Attributes:
        density: Share of the keys, in [0, 1].
        window: Proportions of the window along (frames, rows, columns). None uses the proportions of the grid.
        tile: Largest number of tokens of a tile along (frames, rows, columns).
    """

    name: ClassVar[str] = "neighborhood"
    source: ClassVar[str] = "Generalized Neighborhood Attention, arXiv 2504.16922"
    spatial: ClassVar[bool] = True
    static: ClassVar[bool] = True

    density: float = 0.3
    window: tuple[float, float, float] | None = None
    tile: tuple[int, int, int] = (2, 4, 4)

    def __post_init__(self) -> None:
        check_share("density", self.density)
        for name in ("tile", "window"):
            sizes = getattr(self, name)
            if sizes is None:
                continue
            if len(sizes) != 3 or min(sizes) <= 0:
                raise InvalidSettings(f"{name} must be three positive numbers, got {sizes}")
            object.__setattr__(self, name, tuple(sizes))  # a list has no hash

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        layout, device = call.layout, call.query.device
        with ops.timer("selection", device):
            groups = tiles(layout, self.tile, device)
            shape = self.window or (layout.frames, layout.height, layout.width)
            place = groups.place / torch.tensor(shape, dtype=torch.float32, device=device)
            distance = torch.cdist(place, place, p=float("inf"))
            keep = nearest(distance, groups.sizes, self.density * groups.order.numel())
            return Plan(static_map(call, groups, groups, keep))
