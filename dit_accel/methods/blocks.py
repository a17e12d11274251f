"""Groups of tokens that depend on positions alone: runs of neighbors, and tiles of the token grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dit_accel.core.attention_call import AttentionCall
from dit_accel_kernels import BlockMap
from dit_accel_pipelines import TokenLayout

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """A partition of the visual tokens that all heads share.

    Attributes:
        order: Token indices group by group, int64 ``[S]``.
        offsets: Start of each group in ``order``, int64 ``[G + 1]``.
        place: Center of each group, float32: ``[G, 3]`` (frame, row, column) or ``[G, 2]`` (frame, index in the frame).
    """

    order: Tensor
    offsets: Tensor
    place: Tensor

    def for_call(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Return order ``[B, H, S]`` and offsets ``[B, H, G + 1]`` for a call."""
        return for_heads(self.order, call), for_heads(self.offsets, call)

    @property
    def sizes(self) -> Tensor:
        """Return the number of tokens in each group, ``[G]``."""
        return self.offsets.diff()


def for_heads(table: Tensor, call: AttentionCall) -> Tensor:
    """Repeat a table for every sample and head of a call, ``[B, H, ...]``."""
    return table.expand(call.query.shape[0], call.query.shape[2], *table.shape).contiguous()


def static_map(call: AttentionCall, queries: Groups, keys: Groups, selected: Tensor) -> BlockMap:
    """Return the map of one selection ``[Gq, Gk]`` for all heads, or of one for each head, ``[H, Gq, Gk]``."""
    batch, _, heads, _ = call.query.shape
    selected = selected.expand(batch, heads, *selected.shape[-2:]).contiguous()
    return BlockMap(selected, *queries.for_call(call), *keys.for_call(call))


def run_offsets(tokens: int, size: int, device: torch.device) -> Tensor:
    """Return the offsets of ``ceil(tokens / size)`` runs of nearly equal length, int64 ``[G + 1]``."""
    count = -(-tokens // size)
    return torch.arange(count + 1, device=device) * tokens // count


def frame_runs(layout: TokenLayout, size: int, device: torch.device) -> Groups:
    """Return runs of at most ``size`` neighboring tokens. A run never crosses a frame."""
    per_frame = layout.height * layout.width
    inside = run_offsets(per_frame, size, device)
    starts = torch.arange(layout.frames, device=device)[:, None] * per_frame + inside[:-1]
    offsets = torch.cat([starts.flatten(), starts.new_tensor([layout.visual_tokens])])
    middle = (inside[:-1] + inside[1:] - 1).float() / 2
    frames = torch.arange(layout.frames, device=device, dtype=torch.float32)
    place = torch.cartesian_prod(frames, middle)
    return Groups(torch.arange(layout.visual_tokens, device=device), offsets, place.view(-1, 2))


def tiles(layout: TokenLayout, tile: tuple[int, int, int], device: torch.device) -> Groups:
    """Return boxes of at most ``tile`` (frames, rows, columns) tokens, as equal as the grid allows."""
    grid = (layout.frames, layout.height, layout.width)
    edges = [run_offsets(n, size, device) for n, size in zip(grid, tile, strict=True)]
    index = [  # tile of each token along each axis
        torch.searchsorted(edge[1:], torch.arange(n, device=device), right=True)
        for n, edge in zip(grid, edges, strict=True)
    ]
    counts = [len(edge) - 1 for edge in edges]
    label = (index[0][:, None, None] * counts[1] + index[1][:, None]) * counts[2] + index[2]
    lengths = [edge.diff() for edge in edges]
    sizes = lengths[0][:, None, None] * lengths[1][:, None] * lengths[2]
    offsets = torch.nn.functional.pad(sizes.flatten().cumsum(0), (1, 0))
    middles = [(edge[:-1] + edge[1:] - 1).float() / 2 for edge in edges]
    order = label.flatten().argsort(stable=True)
    return Groups(order, offsets, torch.cartesian_prod(*middles).view(-1, 3))


def nearest(distance: Tensor, sizes: Tensor, keys: float) -> Tensor:
    """Select the nearest key groups of every query group along one axis.

    Of two groups at the same distance, the first one is nearer.

    Args:
        distance: Distances between groups along the axis, ``[Gq, Gk]``.
        sizes: Number of keys in each group, ``[Gk]``.
        keys: Number of keys to select. At least one group is selected.

    Returns:
        The selection, bool ``[Gq, Gk]``. At a border the same number of keys is selected from the other side.
    """
    order = distance.argsort(dim=-1, stable=True)
    taken = sizes.expand_as(distance).gather(-1, order).float()
    before = taken.cumsum(-1) - taken
    keep = (before + taken / 2 <= keys) | (before == 0)
    return torch.zeros_like(keep).scatter_(-1, order, keep)


def uniform_blocks(call: AttentionCall, size: int) -> tuple[Tensor, Tensor]:
    """Return blocks of exactly ``size`` neighboring tokens. The last block may be shorter.

    A size above the number of tokens gives one block.

    Returns:
        Order ``[B, H, S]`` and offsets ``[B, H, G + 1]``.
    """
    device, tokens = call.query.device, call.tokens
    size = min(size, tokens)
    edges = torch.arange(-(-tokens // size) + 1, device=device) * size
    return (
        for_heads(torch.arange(tokens, device=device), call),
        for_heads(edges.clamp(max=tokens), call),
    )
