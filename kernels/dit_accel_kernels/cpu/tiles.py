"""Cut a block map into tiles of queries, and pack tiles of similar shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels.contracts import BlockMap

TILE_ROWS = 256
# Bytes of the scores of one pack.
PACK_BYTES = 1 << 22
# Most keys listed at a time: 64 MiB of indices.
MAX_LISTED_KEYS = 1 << 23
# Rows and columns of a pack are multiples of these, twice that for 16-bit numbers. This keeps the number
# of shapes small, because oneDNN, which multiplies 16-bit numbers, compiles each shape at its first use.
ROW_MULTIPLE, COLUMN_MULTIPLE = 16, 32


@dataclass(frozen=True)
class Tiles:
    """Pieces of at most TILE_ROWS queries of one group, and the keys its group selects.

    Attributes:
        head: index of the head among batch times heads, int64 ``[N]``.
        first_query: position of the first query in ``query_rows``, int64 ``[N]``.
        num_queries: number of queries, int64 ``[N]``.
        first_key: position of the first key in ``key_rows``, int64 ``[N]``.
        num_keys: number of keys, at least one, int64 ``[N]``.
        query_rows: rows of the flat query, int64 ``[P]``.
        key_rows: rows of the flat key and value, int64 ``[P]``.
    """

    head: Tensor
    first_query: Tensor
    num_queries: Tensor
    first_key: Tensor
    num_keys: Tensor
    query_rows: Tensor
    key_rows: Tensor


@dataclass(frozen=True)
class Pack:
    """Tiles that are attended together.

    Attributes:
        tile_index: indices of n tiles, int64 ``[n]``, n a power of two.
        height: number of queries that each tile is padded to.
        length: number of keys that each tile is padded to.
    """

    tile_index: Tensor
    height: int
    length: int


def cut_tiles(block_map: BlockMap, query_rows: Tensor, key_rows: Tensor) -> Iterator[Tiles]:
    """Yield the tiles of some heads at a time, as many as MAX_LISTED_KEYS allows.

    Args:
        block_map: which groups attend to which.
        query_rows: row of each query of the map's order in a flat tensor, int64 ``[B, H, Sq]``.
        key_rows: row of each key of the map's order in a flat tensor, int64 ``[B, H, Sk]``.
    """
    query_rows, key_rows = query_rows.flatten(0, 1), key_rows.flatten(0, 1)
    selected = block_map.selected.flatten(0, 1)
    query_offsets = block_map.query_offsets.flatten(0, 1)
    key_offsets = block_map.key_offsets.flatten(0, 1)
    heads, num_query_groups, _ = selected.shape
    step = max(1, MAX_LISTED_KEYS // (num_query_groups * key_rows.shape[1]))
    for first in range(0, heads, step):
        index = slice(first, first + step)
        yield _cut_tiles_of_heads(
            first,
            selected[index],
            query_rows[index],
            query_offsets[index],
            key_rows[index],
            key_offsets[index],
        )


def _cut_tiles_of_heads(
    first_head: int,
    selected: Tensor,
    query_rows: Tensor,
    query_offsets: Tensor,
    key_rows: Tensor,
    key_offsets: Tensor,
) -> Tiles:
    """Cut the query groups that select a key into tiles of even height.

    Args:
        first_head: index of the first of n heads.
        selected: bool ``[n, Gq, Gk]``.
        query_rows, key_rows: rows group by group, int64 ``[n, S]``.
        query_offsets, key_offsets: int64 ``[n, G + 1]``.
    """
    heads, num_groups, _ = selected.shape
    num_keys, key_positions = _list_keys(selected, key_offsets, key_rows.shape[1])
    num_queries = query_offsets.diff().flatten()
    head_start = torch.arange(heads, device=selected.device)[:, None] * query_rows.shape[1]
    first_query = (query_offsets[:, :-1] + head_start).flatten()
    tiles_of_group = ((num_queries + TILE_ROWS - 1) // TILE_ROWS) * (num_keys > 0)
    group = torch.arange(len(tiles_of_group), device=selected.device)
    group = group.repeat_interleave(tiles_of_group)
    first_tile = tiles_of_group.cumsum(0) - tiles_of_group
    tile_in_group = torch.arange(len(group), device=selected.device) - first_tile[group]
    height = (num_queries[group] + tiles_of_group[group] - 1) // tiles_of_group[group]
    return Tiles(
        head=first_head + group // num_groups,
        first_query=first_query[group] + tile_in_group * height,
        num_queries=torch.minimum(height, num_queries[group] - tile_in_group * height),
        first_key=(num_keys.cumsum(0) - num_keys)[group],
        num_keys=num_keys[group],
        query_rows=query_rows.flatten(),
        key_rows=key_rows.flatten().index_select(0, key_positions),
    )


def _list_keys(selected: Tensor, key_offsets: Tensor, key_tokens: int) -> tuple[Tensor, Tensor]:
    """List the keys that each query group selects.

    Args:
        selected: bool ``[n, Gq, Gk]``.
        key_offsets: int64 ``[n, Gk + 1]``.
        key_tokens: number of keys of a head.

    Returns:
        number of keys of each query group, int64 ``[n Gq]``, and their positions in the flat order of
        keys ``[n Sk]``, group after group, int64 ``[P]``.
    """
    heads, num_query_groups, _ = selected.shape
    sizes = key_offsets.diff()  # [n, Gk]
    head_start = torch.arange(heads, device=selected.device)[:, None] * key_tokens
    starts = key_offsets[:, :-1] + head_start
    head, query_group, key_group = selected.nonzero().unbind(1)
    size = sizes[head, key_group]
    shift = starts[head, key_group] - (size.cumsum(0) - size)
    positions = shift.repeat_interleave(size)
    positions += torch.arange(len(positions), device=positions.device)
    num_keys = size.new_zeros(heads * num_query_groups)
    num_keys.index_add_(0, head * num_query_groups + query_group, size)
    return num_keys, positions


def form_packs(tiles: Tiles, score_bytes: int) -> Iterator[Pack]:
    """Yield packs of tiles of similar height, then of similar length.

    Args:
        tiles: the tiles to pack.
        score_bytes: bytes of a score; a pack has about PACK_BYTES of scores.
    """
    factor = 2 if score_bytes < 4 else 1
    max_scores = PACK_BYTES // score_bytes
    heights = _round_up(tiles.num_queries, factor * ROW_MULTIPLE)
    lengths = _round_up(tiles.num_keys, factor * COLUMN_MULTIPLE)
    order = (heights * (len(tiles.key_rows) + 1) + tiles.num_keys).argsort(descending=True)
    shapes = torch.stack([heights, lengths], 1)[order].tolist()
    start = 0
    while start < len(shapes):
        height, length = shapes[start]
        candidates = shapes[start : start + max_scores // (height * length)]
        same_height = sum(1 for h, _ in candidates if h == height)
        count = 1 << max(0, same_height.bit_length() - 1)
        yield Pack(order[start : start + count], height, length)
        start += count


def _round_up(x: Tensor, multiple: int) -> Tensor:
    """Round up to a multiple."""
    return (x + multiple - 1) // multiple * multiple
