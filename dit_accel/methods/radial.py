"""Radial attention (arXiv 2506.19852): a static mask whose width halves with the distance in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import Method, check_count
from dit_accel.methods.blocks import frame_runs, static_map

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Radial(Method):
    """Attention in a band whose width halves with every doubling of the distance in time.

    Adjacent frames attend fully. If the band would be narrower than a block, only every n-th pair of frames attends.
    All frames attend to the first. A block is kept by the distance between the centers of its groups. The published
    code counts the tokens of its mask instead.

    Attributes:
        decay: Factor on the width of the band, above 0. The paper's models use 0.2 to 0.95. A large factor keeps all
            pairs.
        block: Largest number of tokens in a group. A group never crosses a frame.
    """

    name: ClassVar[str] = "radial"
    source: ClassVar[str] = "Radial attention, arXiv 2506.19852"
    spatial: ClassVar[bool] = True
    static: ClassVar[bool] = True

    decay: float = 0.8
    block: int = 64

    def __post_init__(self) -> None:
        if not self.decay > 0:
            raise InvalidSettings(f"decay must be above 0, got {self.decay}")
        check_count("block", self.block)

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        device = call.query.device
        with ops.timer("selection", device):
            groups = frame_runs(call.layout, self.block, device)
            frame, inside = groups.place.unbind(-1)
            apart = (frame[:, None] - frame).abs()
            offset = (inside[:, None] - inside).abs()
            keep = self.selected(apart, offset, call.layout.height * call.layout.width)
            return Plan(static_map(call, groups, groups, keep | (frame == 0)))

    def selected(self, apart: Tensor, offset: Tensor, per_frame: int) -> Tensor:
        """Return the pairs of groups that attend, ``[G, G]``, from their distances between and within frames."""
        block = min(self.block, per_frame)
        width = 2.0 ** per_frame.bit_length() / 2.0 ** apart.frexp().exponent  # 2 ** bit_length
        # Only every n-th pair of frames attends. The published code leaves decay out here, and has it below 1.
        stride = (block / (width * max(self.decay, 1.0))).clamp(min=1).floor()
        near = offset <= (width * self.decay).clamp(min=block)
        return (apart <= 1) | (near & (apart % stride == 0))
