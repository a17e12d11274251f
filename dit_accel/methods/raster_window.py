"""The released masks of Re-ttention (arXiv 2505.22918), token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import Method, check_number
from dit_accel.methods.blocks import Groups, static_map


@dataclass(frozen=True, kw_only=True)
class RasterWindow(Method):
    """Attention of each query to the keys whose raster index in their frame is near its own, in all frames.

    These are exactly the masks that Re-ttention's code has for PixArt, HunyuanDiT and CogVideoX. The window is cut at
    the edges of a frame. It is exact to the token, so groups hold the tokens of one place only. On a CPU that is slower
    than dense attention, and the plan of an image of 4,096 tokens takes 16 MiB for each head: use it to compare, and
    ``band`` for speed.

    Attributes:
        window: Length of a whole window as a share of the tokens of a frame, above 0: the ``sparsity`` of the released
            code. It reaches ``int(window * tokens) // 2`` tokens to each side, so 2 keeps all pairs.
    """

    name: ClassVar[str] = "raster-window"
    source: ClassVar[str] = "Re-ttention, arXiv 2505.22918"
    spatial: ClassVar[bool] = True
    static: ClassVar[bool] = True
    fine: ClassVar[bool] = True

    window: float = 1 / 32

    def __post_init__(self) -> None:
        check_number("window", self.window)
        if not 0 < self.window <= 2:
            raise InvalidSettings(f"window must be in (0, 2], got {self.window}")

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        device, frames = call.query.device, call.layout.frames
        with ops.timer("selection", device):
            places = call.layout.height * call.layout.width
            place = torch.arange(places, device=device)
            tokens = torch.arange(frames * places, device=device)
            groups = Groups(
                tokens.view(frames, places).t().flatten(),
                torch.arange(places + 1, device=device) * frames,
                place.float()[:, None],
            )
            reach = int(self.window * places) // 2
            near = (place[:, None] - place).abs() <= reach
            return Plan(static_map(call, groups, groups, near))
