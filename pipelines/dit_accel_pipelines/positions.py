"""Infer the grid of visual tokens from the positions that a pipeline gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def infer_grid(positions: Tensor) -> tuple[int, int, int]:
    """Return frames, height and width of tokens in raster order, from their row and column ``[S, 2]``.

    Images of the same size count as frames. If the tokens form no single grid, they count as one line:
    ``(1, 1, S)``. Positions are read from the device.
    """
    positions = positions.cpu()
    tokens = len(positions)
    frames = int((positions == positions[0]).all(1).sum())
    first = positions[: tokens // frames, 0]
    width = int((first == first[0]).sum())
    height = len(first) // width
    if frames * height * width != tokens:
        return 1, 1, tokens
    grid = positions.view(frames, height, width, 2)
    rows, columns = grid[:1, :, :1, 0], grid[:1, :1, :, 1]
    if (grid[..., 0] != rows).any() or (grid[..., 1] != columns).any():
        return 1, 1, tokens
    return frames, height, width
