"""Radial attention (arXiv 2506.19852): a static mask whose width halves with the distance in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import Method, check_count
from dit_accel.methods.blocks import frame_runs, run_offsets, static_map

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_pipelines import TokenLayout


@dataclass(frozen=True, kw_only=True)
class Radial(Method):
    """Attention in a band whose width halves with every doubling of the distance in time.

    Adjacent frames attend fully. If the band would be narrower than a block, only every n-th pair of frames attends.

    Attributes:
        decay: Factor on the width of the band, above 0. The paper's models use 0.2 to 0.95. A large factor keeps all
            pairs.
        block: Largest number of tokens in a group. A group never crosses a frame.
        first_frame: True lets every frame attend to the first one. The released HunyuanVideo recipe does not.
        min_width: Smallest width of the band in tokens. None is the size of a block.
        thinning: Width in tokens below which only every n-th pair of frames attends. None is the size of a block. The
            released code has 128 for every block size.
        rule: Which blocks are in the band: ``"centers"`` keeps those whose centers are within its width. ``"columns"``
            counts the pairs of tokens in the columns of a block, as the released code does.
    """

    name: ClassVar[str] = "radial"
    source: ClassVar[str] = "Radial attention, arXiv 2506.19852"
    spatial: ClassVar[bool] = True
    static: ClassVar[bool] = True

    decay: float = 0.8
    block: int = 64
    first_frame: bool = True
    min_width: int | None = None
    thinning: int | None = None
    rule: Literal["centers", "columns"] = "centers"

    def __post_init__(self) -> None:
        if not self.decay > 0:
            raise InvalidSettings(f"decay must be above 0, got {self.decay}")
        check_count("block", self.block)
        for name in ("min_width", "thinning"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.rule not in ("centers", "columns"):
            raise InvalidSettings(f"rule must be centers or columns, got {self.rule!r}")

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        layout, device = call.layout, call.query.device
        with ops.timer("selection", device):
            groups = frame_runs(layout, self.block, device)
            frame = torch.arange(layout.frames, device=device)
            keep = self.by_distance(layout, device)[(frame[:, None] - frame).abs()]  # [F, F, G, G]
            if self.first_frame:
                keep[:, 0] = True
            selected = keep.transpose(1, 2).reshape(groups.sizes.numel(), -1)
            return Plan(static_map(call, groups, groups, selected))

    def by_distance(self, layout: TokenLayout, device: torch.device) -> Tensor:
        """Return the pairs of groups that attend, by the distance between their frames, bool ``[F, G, G]``."""
        per_frame = layout.height * layout.width
        block = min(self.block, per_frame)
        apart = torch.arange(layout.frames, dtype=torch.float32, device=device)[:, None, None]
        width = 2.0 ** per_frame.bit_length() / 2.0 ** apart.frexp().exponent  # 2 ** bit_length
        # Only every n-th pair of frames attends. The published code leaves decay out here, and has it below 1.
        thinning = self.thinning or block
        stride = (thinning / (width * max(self.decay, 1.0))).clamp(min=1).floor()
        reach = (width * self.decay).clamp(min=self.min_width or block)
        in_band = centers_in_band if self.rule == "centers" else columns_in_band
        near = in_band(run_offsets(per_frame, block, device), per_frame, reach)
        return (apart <= 1) | (near & (apart % stride == 0))


def centers_in_band(offsets: Tensor, tokens: int, reach: Tensor) -> Tensor:
    """Return the pairs of groups whose centers are within reach.

    Args:
        offsets: Start of each group in a frame, ``[G + 1]``.
        tokens: Number of tokens of a frame.
        reach: Largest distances, ``[F, 1, 1]``.

    Returns:
        Bool ``[F, G, G]``.
    """
    middle = (offsets[:-1] + offsets[1:] - 1).float() / 2
    return (middle[:, None] - middle).abs() <= reach


def columns_in_band(offsets: Tensor, tokens: int, reach: Tensor) -> Tensor:
    """Return the pairs of groups that the released code keeps.

    A column of a block is full if more than a third of its queries are within reach. More than 60 % of the columns with
    such a query must be full. The arguments and the result are those of `centers_in_band`.
    """
    key = torch.arange(tokens, device=offsets.device)
    first, end = offsets[:-1, None], offsets[1:, None]  # of the queries of a group
    low, high = (
        torch.maximum(first, (key - reach).ceil()),
        torch.minimum(end - 1, (key + reach).floor()),
    )
    queries = (high - low + 1).clamp(min=0)  # within reach of each key, [F, G, P]
    full = _count(queries > (end - first) / 3, offsets)
    return full > 0.6 * _count(queries > 0, offsets)


def _count(columns: Tensor, offsets: Tensor) -> Tensor:
    """Return the number of marked columns in each group, ``[F, G, G]``."""
    return torch.nn.functional.pad(columns.cumsum(-1), (1, 0))[..., offsets].diff(dim=-1)
