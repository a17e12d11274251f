"""Turn a BlockMap into key lists and query tiles, on the device and without a sync.

Keys: each (head, query group) gets one flat list of token indices, with the selected key groups packed
one after the other, so no key tile is padded. The caller bounds the memory of the lists by building
them for a few heads at a time.

Queries: tiles never cross a group. Large tiles cover the bulk of a group, and one small tile takes a
remainder that fits it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from dit_accel_kernels.contracts import BlockMap, label_positions

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_S = 1024


@triton.jit(do_not_specialize=("k_len", "num_q_groups", "num_k_groups"))
def _key_lists_kernel(
    selected_ptr,  # bool [BH, Gq, Gk]
    packed_start_ptr,  # int32 [BH, Gq, Gk], where a key group begins in its list
    k_labels_ptr,  # int32 [BH, Sk], group of the token at each position of the order
    k_offsets_ptr,  # int64 [BH, Gk + 1]
    k_order_ptr,  # int64 [BH, Sk]
    k_list_ptr,  # int32 [BH, Gq, stride_list]
    stride_list,
    k_len,
    num_q_groups,
    num_k_groups,
    BLOCK_S: tl.constexpr,
):
    """Append the selected keys among ``BLOCK_S`` keys to the list of one query group."""
    pid_bh = tl.program_id(2).to(tl.int64)
    pid_q_group = tl.program_id(1)
    offs_s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    mask_s = offs_s < k_len
    list_idx = pid_bh * num_q_groups + pid_q_group
    k_group = tl.load(k_labels_ptr + pid_bh * k_len + offs_s, mask_s, 0)
    selected = tl.load(selected_ptr + list_idx * num_k_groups + k_group, mask_s, 0)
    mask_selected = selected.to(tl.int1) & mask_s
    group_start = tl.load(k_offsets_ptr + pid_bh * (num_k_groups + 1) + k_group, mask_selected, 0)
    packed_start = tl.load(packed_start_ptr + list_idx * num_k_groups + k_group, mask_selected, 0)
    position = packed_start + (offs_s - group_start)
    k_idx = tl.load(k_order_ptr + pid_bh * k_len + offs_s, mask_selected, 0)
    tl.store(k_list_ptr + list_idx * stride_list + position, k_idx.to(tl.int32), mask_selected)


def label_keys(block_map: BlockMap) -> Tensor:
    """Return the key group at each position of the order, int32 ``[B, H, Sk]``."""
    return label_positions(block_map.key_offsets, block_map.key_order.shape[-1]).to(torch.int32)


def build_key_lists(block_map: BlockMap, k_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pack the keys that each query group selects.

    Args:
        block_map: map of some heads, as `slice_heads` returns it.
        k_labels: the result of `label_keys` for these heads, contiguous.

    Returns:
        lists int32 ``[B, H, Gq, N]`` with N at least Sk, of which only the first ``count`` entries of a row are
        written, and counts int32 ``[B, H, Gq]``.
    """
    batch, heads, num_q_groups, num_k_groups = block_map.selected.shape
    k_len = block_map.key_order.shape[-1]
    group_sizes = block_map.key_offsets.diff(dim=-1)[:, :, None]  # [B, H, 1, Gk]
    selected_sizes = (block_map.selected * group_sizes).to(torch.int32)
    packed_ends = selected_sizes.cumsum(-1, dtype=torch.int32)  # [B, H, Gq, Gk]
    # Rows begin at multiples of 256 bytes, which load in wide steps.
    lists = selected_sizes.new_empty(batch, heads, num_q_groups, triton.cdiv(k_len, 64) * 64)
    _key_lists_kernel[(triton.cdiv(k_len, BLOCK_S), num_q_groups, batch * heads)](
        block_map.selected,
        packed_ends - selected_sizes,
        k_labels,
        block_map.key_offsets,
        block_map.key_order,
        lists,
        lists.shape[-1],
        k_len,
        num_q_groups,
        num_k_groups,
        BLOCK_S=BLOCK_S,
    )
    return lists, packed_ends[..., -1].contiguous()


def build_query_tiles(
    offsets: Tensor, q_len: int, block_m: int, remainder_m: int = 0
) -> tuple[Tensor, Tensor]:
    """Cut query groups into tiles that never cross a group.

    Args:
        offsets: int64 ``[B, H, Gq + 1]``.
        q_len: number of query tokens.
        block_m: rows of a tile.
        remainder_m: leave remainders of at most so many rows to `build_remainder_tiles`.

    Returns:
        start in the order and group, both int32 ``[B, H, T]``. T is a bound that depends on shapes
        only; the group of a tile that does not exist is -1.
    """
    sizes = offsets.diff(dim=-1)  # [B, H, Gq]
    count = sizes // block_m + (sizes % block_m > remainder_m)
    num_groups = sizes.shape[-1]
    ends = count.cumsum(-1)  # [B, H, Gq]
    tile = torch.arange(num_groups + q_len // block_m, device=offsets.device)
    tile = tile.expand(*ends.shape[:2], -1).contiguous()
    group = torch.searchsorted(ends, tile, right=True)
    exists = group < num_groups
    clamped = group.clamp(max=num_groups - 1)
    tile_in_group = tile - (ends - count).gather(-1, clamped)
    start = offsets.gather(-1, clamped) + block_m * tile_in_group
    return start.to(torch.int32), torch.where(exists, group, -1).to(torch.int32)


def build_remainder_tiles(offsets: Tensor, block_m: int, remainder_m: int) -> tuple[Tensor, Tensor]:
    """Return the tiles of ``remainder_m`` rows that `build_query_tiles` leaves, at most one for each group.

    Args:
        offsets: int64 ``[B, H, Gq + 1]``.
        block_m, remainder_m: as `build_query_tiles` got them. Any two heights cover every query once.

    Returns:
        start in the order and group, both int32 ``[B, H, Gq]``; the group of a tile that does not exist
        is -1.
    """
    remainder = offsets.diff(dim=-1) % block_m  # [B, H, Gq]
    exists = (remainder > 0) & (remainder <= remainder_m)
    group = torch.arange(remainder.shape[-1], device=offsets.device)
    start = offsets[..., 1:] - remainder
    return start.to(torch.int32), torch.where(exists, group, -1).to(torch.int32)


def slice_heads(block_map: BlockMap, batch: int, heads: slice) -> BlockMap:
    """Return the map of some heads of one batch element, contiguous, ``[1, H, ...]``."""
    index = (slice(batch, batch + 1), heads)
    return BlockMap(
        block_map.selected[index].contiguous(),
        block_map.query_order[index].contiguous(),
        block_map.query_offsets[index].contiguous(),
        block_map.key_order[index].contiguous(),
        block_map.key_offsets[index].contiguous(),
    )
