"""From a BlockMap to what the sparse kernel reads, on the device and without a sync.

Keys: one flat list of token indices per (head, query group), the selected key groups packed one
after the other, so that no key tile is padded. Lists are made for a few heads at a time, which
bounds their memory. Queries: tiles that never cross a group, of 128 rows where that fills them and
of 64 for what is left, so that no group wastes more than half a small tile.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_accel_kernels.contracts import BlockMap, group_of_place


@triton.jit
def _list_kernel(
    selected,  # bool [BH, Gq, Gk]
    packed_start,  # int32 [BH, Gq, Gk]: where a key group begins in its list
    key_group,  # int32 [BH, Sk]: group of the token at each place of the order
    key_offsets,  # int64 [BH, Gk + 1]
    key_order,  # int64 [BH, Sk]
    key_list,  # int32 [BH, Gq, capacity]
    tokens,
    query_groups,
    key_groups,
    capacity,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(2)
    group = tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < tokens
    row = at.to(tl.int64) * query_groups + group
    owner = tl.load(key_group + at.to(tl.int64) * tokens + place, inside, 0)
    chosen = tl.load(selected + row * key_groups + owner, inside, 0).to(tl.int1) & inside
    begin = tl.load(key_offsets + at.to(tl.int64) * (key_groups + 1) + owner, chosen, 0)
    target = tl.load(packed_start + row * key_groups + owner, chosen, 0) + (place - begin)
    token = tl.load(key_order + at.to(tl.int64) * tokens + place, chosen, 0)
    tl.store(key_list + row * capacity + target, token.to(tl.int32), chosen & (target < capacity))


def key_lists(block_map: BlockMap, capacity: int) -> tuple[Tensor, Tensor]:
    """Packed key indices of every query group.

    Args:
        block_map: maps of some heads, as ``heads_of`` cuts them.
        capacity: places per list; keys beyond it are left out.

    Returns:
        int32 ``[B, H, Gq, capacity]`` (only the first ``count`` entries of a row are written) and
        the counts, int32 ``[B, H, Gq]``.
    """
    batch, heads, query_groups, key_groups = block_map.selected.shape
    tokens = block_map.key_order.shape[-1]
    sizes = block_map.key_offsets.diff(dim=-1)[:, :, None]  # [B, H, 1, Gk]
    taken = (block_map.selected * sizes).to(torch.int32)
    ends = taken.cumsum(-1, dtype=torch.int32)  # [B, H, Gq, Gk]
    starts = ends - taken
    key_group = group_of_place(block_map.key_offsets, tokens).to(torch.int32)
    lists = taken.new_empty(batch, heads, query_groups, capacity)
    block = 1024
    _list_kernel[(triton.cdiv(tokens, block), query_groups, batch * heads)](
        block_map.selected,
        starts,
        key_group,
        block_map.key_offsets,
        block_map.key_order,
        lists,
        tokens,
        query_groups,
        key_groups,
        capacity,
        BLOCK=block,
    )
    return lists, ends[..., -1].clamp(max=capacity)


def query_tiles(
    offsets: Tensor, tokens: int, height: int, part: Literal["all", "large", "small"]
) -> tuple[Tensor, Tensor]:
    """Tiles of query groups: where each begins in the order, and its group.

    Args:
        offsets: int64 ``[B, H, Gq + 1]``.
        tokens: number of query tokens.
        height: rows of a tile.
        part: ``"all"`` tiles; or ``"large"`` ones, which leave a rest of a group that fills no more
            than half a tile to ``"small"`` ones, asked for with half the height.

    Returns:
        start int32 and group int32, both ``[B, H, T]`` with T a bound that depends on shapes only;
        group is -1 for tiles that do not exist.
    """
    sizes = offsets.diff(dim=-1)  # [B, H, Gq]
    groups = sizes.shape[-1]
    first, bound = offsets[..., :-1], groups + tokens // height
    if part == "small":
        rest = sizes % (2 * height)
        count = ((rest > 0) & (rest <= height)).long()
        first, bound = first + sizes - rest, groups
    else:
        least = height // 2 if part == "large" else 0
        count = sizes // height + (sizes % height > least)
    ends = count.cumsum(-1)  # [B, H, Gq]
    tile = torch.arange(bound, device=offsets.device).expand(*ends.shape[:2], bound).contiguous()
    group = torch.searchsorted(ends, tile, right=True)
    exists = group < groups
    known = group.clamp(max=groups - 1)
    start = first.gather(-1, known) + height * (tile - (ends - count).gather(-1, known))
    return start.to(torch.int32), torch.where(exists, group, -1).to(torch.int32)


def heads_of(block_map: BlockMap, batch: int, heads: slice) -> BlockMap:
    """The part of a map for some heads of one batch element."""
    at = (slice(batch, batch + 1), heads)
    return BlockMap(
        block_map.selected[at].contiguous(),
        block_map.query_order[at].contiguous(),
        block_map.query_offsets[at].contiguous(),
        block_map.key_order[at].contiguous(),
        block_map.key_offsets[at].contiguous(),
    )
