"""Static windows in space and time: neighborhood attention on tiles (arXiv 2504.16922, 2502.04507)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import Method, check_share
from dit_accel.methods.blocks import check_sizes, static_map, tiles

if TYPE_CHECKING:
    from torch import Tensor

# A window that is three times as long as the grid's proportions counts as 11 % off the density.
STRETCH_WEIGHT = 0.1


@dataclass(frozen=True, kw_only=True)
class Neighborhood(Method):
    """Attention of each tile of the token grid to a box of tiles around it, as in sliding tile attention.

    The box has the same number of tiles everywhere. Inside the grid the query's tile is its center. At a border the
    box is shifted inward.

    Attributes:
        density: Share of the keys, in [0, 1]. The window is the box with the nearest share. Of boxes with similar
            shares, it is the one that is most like the grid. Its sizes are odd, or those of the grid. The report has
            the share that the window gives.
        window: Number of tiles of the window along (frames, rows, columns). It replaces density. A size above that of
            the grid takes all tiles. An even size has one more tile before the query's tile than after it. A sequence
            of windows has one for each head. None takes the window from density.
        tile: Largest number of tokens of a tile along (frames, rows, columns).
    """

    name: ClassVar[str] = "neighborhood"
    source: ClassVar[str] = "Generalized Neighborhood Attention, arXiv 2504.16922"
    spatial: ClassVar[bool] = True
    static: ClassVar[bool] = True

    density: float = 0.3
    window: tuple[int, int, int] | tuple[tuple[int, int, int], ...] | None = None
    tile: tuple[int, int, int] = (2, 4, 4)

    def __post_init__(self) -> None:
        check_share("density", self.density)
        object.__setattr__(self, "tile", check_sizes("tile", self.tile))
        if self.window is not None:
            boxes = tuple(check_sizes("window", box) for box in _boxes(self.window))
            object.__setattr__(self, "window", boxes if len(boxes) > 1 else boxes[0])

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        layout, device = call.layout, call.query.device
        with ops.timer("selection", device):
            groups = tiles(layout, self.tile, device)
            grid = (layout.frames, layout.height, layout.width)
            # Without tensors, because the host would wait for a choice on the device.
            lengths = [tile_lengths(*axis) for axis in zip(grid, self.tile, strict=True)]
            counts = [len(axis) for axis in lengths]
            windows = self.windows(lengths, call.query.shape[2])
            selected = torch.stack([box_mask(counts, window, device) for window in windows])
            return Plan(static_map(call, groups, groups, selected))

    def windows(self, lengths: Sequence[Sequence[int]], heads: int) -> list[tuple[int, ...]]:
        """Return one window for all heads, or one for each head.

        Args:
            lengths: Number of tokens of each tile along each axis.
            heads: Number of heads.
        """
        if self.window is None:
            return [choose_window(lengths, self.density)]
        windows = _boxes(self.window)
        if len(windows) not in (1, heads):
            raise InvalidSettings(
                f"window has {len(windows)} windows for {heads} heads: give one for all, or {heads}"
            )
        return windows


def _boxes(window: Sequence[Any]) -> list[Any]:
    """Return the windows of a knob that holds one or several."""
    several = any(isinstance(size, list | tuple) for size in window)
    return list(window) if several else [window]


def box_mask(counts: Sequence[int], window: Sequence[int], device: torch.device) -> Tensor:
    """Return the tiles in the box of each tile, bool ``[G, G]``.

    Args:
        counts: Number of tiles along each axis.
        window: Number of tiles of the box along each axis.
        device: Device of the result.
    """
    frames, rows, columns = (
        window_mask(count, size, device) for count, size in zip(counts, window, strict=True)
    )
    keep = (  # [T, Y, X, T, Y, X]
        frames[:, None, None, :, None, None]
        & rows[:, None, None, :, None]
        & columns[:, None, None, :]
    )
    return keep.reshape(math.prod(counts), math.prod(counts))


def window_mask(tiles: int, size: int, device: torch.device) -> Tensor:
    """Return the tiles in the window of each tile along one axis, bool ``[T, T]``."""
    index, size = torch.arange(tiles, device=device), min(size, tiles)
    first = (index - size // 2).clamp(0, tiles - size)[:, None]
    return (index >= first) & (index < first + size)


def tile_lengths(tokens: int, size: int) -> list[int]:
    """Return the number of tokens of each tile along one axis, as `run_offsets` divides them."""
    count = -(-tokens // size)
    edges = [index * tokens // count for index in range(count + 1)]
    return [end - start for start, end in pairwise(edges)]


def choose_window(lengths: Sequence[Sequence[int]], density: float) -> tuple[int, ...]:
    """Return the sizes of the window for a density, in tiles.

    Args:
        lengths: Number of tokens of each tile along each axis.
        density: Share of the keys.
    """
    shares = [  # of each axis by the size of the window, which is odd or that of the grid
        {n: _share(axis, n) for n in sorted({*range(1, len(axis) + 1, 2), len(axis)})}
        for axis in lengths
    ]

    def cost(window: tuple[int, ...]) -> float:
        share = math.prod(axis[size] for axis, size in zip(shares, window, strict=True))
        covered = [
            size / len(axis) for axis, size in zip(lengths, window, strict=True) if len(axis) > 1
        ]
        stretch = max(covered, default=1.0) / min(covered, default=1.0)
        error = abs(math.log(share / max(density, 1e-9)))
        return round(error + STRETCH_WEIGHT * math.log(stretch), 9)  # without rounding errors

    return min(product(*shares), key=cost)


def _share(lengths: Sequence[int], size: int) -> float:
    """Return the share of the pairs of tokens along one axis that lie in a window."""
    ends = [0, *accumulate(lengths)]
    firsts = (min(max(i - size // 2, 0), len(lengths) - size) for i in range(len(lengths)))
    pairs = (
        tokens * (ends[first + size] - ends[first])
        for tokens, first in zip(lengths, firsts, strict=True)
    )
    return sum(pairs) / ends[-1] ** 2
