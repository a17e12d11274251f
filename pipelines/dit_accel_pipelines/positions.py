"""The grid that tokens form, from the positions a pipeline gives them."""

from __future__ import annotations

from torch import Tensor


def grid_of(positions: Tensor) -> tuple[int, int, int]:
    """Frames, height and width of tokens in raster order, from their row and column ``[S, 2]`` (read from the
    device). Images of one size are frames; a line where the tokens are no single grid.
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
