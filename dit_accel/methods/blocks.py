"""Groups of tokens that depend on positions alone: runs of neighbors, and tiles of the token grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dit_accel.core.attention_call import AttentionCall
from dit_accel.errors import InvalidSettings
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


def check_sizes(name: str, sizes: object) -> tuple[int, ...]:
    """Return sizes along (frames, rows, columns) as a tuple, which has a hash.

    Raises:
        InvalidSettings: Unless they are three whole numbers above 0.
    """
    box = tuple(sizes) if isinstance(sizes, list | tuple) else ()
    if len(box) != 3 or not all(isinstance(size, int) and size > 0 for size in box):
        raise InvalidSettings(f"{name} must be three whole numbers above 0, got {sizes}")
    return box


def run_offsets(tokens: int, size: int, device: torch.device) -> Tensor:
    """Return the offsets of ``ceil(tokens / size)`` runs of nearly equal length, int64 ``[G + 1]``."""
    count = -(-tokens // size)
    return torch.arange(count + 1, device=device) * tokens // count


def cut_offsets(tokens: int, size: int, device: torch.device) -> Tensor:
    """Return the offsets of runs of exactly ``size`` tokens, int64 ``[G + 1]``. The last run may be shorter."""
    size = min(size, tokens)
    return (torch.arange(-(-tokens // size) + 1, device=device) * size).clamp(max=tokens)


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


def tiles(
    layout: TokenLayout, tile: tuple[int, int, int], device: torch.device, *, equal: bool = True
) -> Groups:
    """Return boxes of at most ``tile`` (frames, rows, columns) tokens.

    Args:
        layout: Grid of the tokens.
        tile: Size of a box.
        device: Device of the result.
        equal: Make boxes as equal as the grid allows. Otherwise only the last ones of an axis are smaller.
    """
    grid = (layout.frames, layout.height, layout.width)
    divide = run_offsets if equal else cut_offsets
    edges = [divide(n, size, device) for n, size in zip(grid, tile, strict=True)]
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
    return (
        for_heads(torch.arange(tokens, device=device), call),
        for_heads(cut_offsets(tokens, size, device), call),
    )


def hilbert_order(layout: TokenLayout, device: torch.device) -> Tensor:
    """Return the visual tokens along a Hilbert curve, int64 ``[S]``.

    The curve fills the smallest cube whose side is a power of two and that holds the grid. Places outside the grid
    are left out. An axis of one token is no axis of the cube, so an image gets the curve of a square.
    The steps are those of Skilling, "Programming the Hilbert curve" (2004).
    """
    sizes = [size for size in (layout.frames, layout.height, layout.width) if size > 1]
    if not sizes:
        return torch.arange(1, device=device)
    axes = [torch.arange(size, device=device) for size in sizes]
    x = [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]
    bits = (max(sizes) - 1).bit_length()
    for level in reversed(range(1, bits)):
        for i in range(len(x)):
            below = (1 << level) - 1
            inside = (x[i] >> level & 1).bool()
            swapped = (x[0] ^ x[i]) & below
            x[0] = torch.where(inside, x[0] ^ below, x[0] ^ swapped)
            if i:
                x[i] = torch.where(inside, x[i], x[i] ^ swapped)
    for i in range(1, len(x)):
        x[i] = x[i] ^ x[i - 1]
    flips = torch.zeros_like(x[0])
    for level in range(1, bits):
        flips = torch.where((x[-1] >> level & 1).bool(), flips ^ ((1 << level) - 1), flips)
    place = torch.zeros_like(flips)
    for level in reversed(range(bits)):
        for axis in x:
            place = place << 1 | ((axis ^ flips) >> level & 1)
    return place.argsort()
