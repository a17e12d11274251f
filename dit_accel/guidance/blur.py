"""Gaussian blur of queries over the token grid (SEG, arXiv 2408.00760)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dit_accel.errors import RunFailed

if TYPE_CHECKING:
    from torch import Tensor


def blur_queries(query: Tensor, grid: tuple[int, int, int] | None, sigma: float) -> Tensor:
    """Blur queries along the rows and the columns of their grid, in each frame by itself.

    The kernel is that of SEG's code: cut after three standard deviations and at the size of the grid, with
    reflection at the edges.

    Args:
        query: Queries of the visual tokens in raster order, ``[B, N, H, D]``.
        grid: Frames, rows and columns; None if unknown.
        sigma: Standard deviation, in tokens.

    Raises:
        RunFailed: If the grid is unknown.
    """
    if grid is None:
        raise RunFailed(
            "the perturbation blurred-query needs visual tokens that lie in a grid, and the grid is unknown here: use "
            "mean-query"
        )
    batch, _, heads, channels = query.shape
    # [B, F, rows, columns, H, D] -> [B F, H D, rows, columns]
    images = (
        query.float().reshape(batch, *grid, heads * channels).permute(0, 1, 4, 2, 3).flatten(0, 1)
    )
    for axis in (2, 3):
        images = _blur_axis(images, axis, sigma)
    blurred: Tensor = images.unflatten(0, (batch, grid[0])).permute(0, 1, 3, 4, 2)
    return blurred.reshape(query.shape).to(query.dtype)


def _blur_axis(images: Tensor, axis: int, sigma: float) -> Tensor:
    """Blur images ``[N, C, rows, columns]`` along one axis."""
    size = images.shape[axis]
    wanted = math.ceil(6 * sigma)
    length = min(wanted + 1 - wanted % 2, size + 1 - size % 2)
    distance = torch.arange(length, device=images.device, dtype=torch.float32) - length // 2
    kernel = (-0.5 * (distance / sigma) ** 2).exp()
    kernel = kernel / kernel.sum()
    place = torch.arange(size, device=images.device)
    # Reflection without repeating the edge.
    sources = (place[:, None] + distance.long()).abs()
    sources = (size - 1) - ((size - 1) - sources).abs()
    matrix = images.new_zeros(size, size).scatter_add_(1, sources, kernel.expand(size, -1))
    equation = "ncyx,wx->ncyw" if axis == 3 else "ncyx,wy->ncwx"
    blurred: Tensor = torch.einsum(equation, images, matrix)
    return blurred
