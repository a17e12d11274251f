"""Run variable-block sparse attention: gathered query tiles against packed lists of keys, then stand-ins.

One online softmax runs over both. A stand-in is one key and one value for a key group that is not selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from dit_accel_kernels.gpu.arithmetic import LOG2E, NO_KEY, online_softmax_end, restore_values
from dit_accel_kernels.gpu.launch import (
    Launch,
    compute_capability,
    is_interpreted,
    make_last_contiguous,
    needs_wide_offsets,
    pad_to_power_of_two,
    select_launch,
)
from dit_accel_kernels.gpu.planner import (
    build_key_lists,
    build_query_tiles,
    build_remainder_tiles,
    label_keys,
    slice_heads,
)
from dit_accel_kernels.gpu.quantize import Quantized
from dit_accel_kernels.gpu.sparse_tiles import attend_to_listed_keys, attend_to_stand_ins
from dit_accel_kernels.gpu.stand_ins import MAX_BLOCK_STAND, build_stand_ins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_accel_kernels.contracts import BlockMap, Skipped
    from dit_accel_kernels.gpu.stand_ins import StandIns

# Bytes that the key lists and the stand-ins of one launch may take.
MAX_BYTES = 2**30


# Sizes that would compile the kernel again for each resolution.
SIZES = ("q_len", "num_q_groups", "num_tiles")


@triton.jit(do_not_specialize=SIZES)
def _sparse_attention_fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,  # float32 [H, Sq]
    q_scale_ptr,  # float32 [H, Sq]
    k_scale_ptr,  # float32 [H, Sk], or [H] if KEYS_PER_SCALE is 0
    v_scale_ptr,  # float32 [H, D]
    v_mean_ptr,  # float32 [H, D]
    full_q_ptr,  # queries before quantization
    stand_k_ptr,  # [H, Gq or 1, N, D], the dtype of full_q_ptr
    stand_v_ptr,  # [H, Gq or 1, N, D]
    stand_bias_ptr,  # float32 [H, Gq, N]
    q_order_ptr,  # int64 [H, Sq]
    q_offsets_ptr,  # int64 [H, Gq + 1]
    tile_start_ptr,  # int32 [H, num_tiles]
    tile_group_ptr,  # int32 [H, num_tiles]
    k_list_ptr,  # int32 [H, Gq, stride_list]
    k_count_ptr,  # int32 [H, Gq]
    stride_list,
    stride_qh,
    stride_qs,
    stride_kh,
    stride_ks,
    stride_vh,
    stride_vs,
    stride_oh,
    stride_os,
    stride_q_scale,
    stride_k_scale,
    stride_full_qh,
    stride_full_qs,
    stride_stand_h,
    stride_stand_g,
    num_stand_ins,
    q_len,
    num_q_groups,
    num_tiles,
    sm_scale,  # times log2(e)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_STAND: tl.constexpr,
    QK_INT8: tl.constexpr,
    PV_FP8: tl.constexpr,
    KEYS_PER_SCALE: tl.constexpr,
    HAS_LSE: tl.constexpr,
    HAS_STAND_INS: tl.constexpr,
    TAIL_MASK: tl.constexpr,
    WIDE: tl.constexpr,
    SIMULATE: tl.constexpr,
):
    """Attend one tile of a query group to the keys in the group's list, and to the group's stand-ins."""
    pid_h = tl.program_id(1).to(tl.int64)
    pid_m = tl.program_id(0)
    q_group = tl.load(tile_group_ptr + pid_h * num_tiles + pid_m)
    if q_group < 0:
        return
    start_m = tl.load(tile_start_ptr + pid_h * num_tiles + pid_m)
    end_m = tl.load(q_offsets_ptr + pid_h * (num_q_groups + 1) + q_group + 1)
    offs_m = start_m + tl.arange(0, BLOCK_M)
    mask_m = offs_m < end_m
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HEAD_DIM
    mask_md = mask_m[:, None] & mask_d[None, :]
    q_idx = tl.load(q_order_ptr + pid_h * q_len + offs_m, mask_m, 0)  # int64 [M]
    q = tl.load(q_ptr + pid_h * stride_qh + q_idx[:, None] * stride_qs + offs_d, mask_md, 0)
    qk_scale = tl.full([BLOCK_M], sm_scale, tl.float32)
    if QK_INT8:
        qk_scale *= tl.load(q_scale_ptr + pid_h * stride_q_scale + q_idx, mask_m, 1.0)
        k_scale_ptr += pid_h * stride_k_scale
        if KEYS_PER_SCALE == 0:
            qk_scale *= tl.load(k_scale_ptr)
    k_ptr += pid_h * stride_kh
    v_ptr += pid_h * stride_vh
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m_i = tl.full([BLOCK_M], NO_KEY, tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    k_list_ptr += (pid_h * num_q_groups + q_group) * stride_list
    k_count = tl.load(k_count_ptr + pid_h * num_q_groups + q_group)
    if TAIL_MASK:
        # Only the last tile needs a mask.
        k_full = k_count // BLOCK_N * BLOCK_N
        for start_n in tl.range(0, k_full, BLOCK_N):
            acc, m_i, l_i = attend_to_listed_keys(
                q, qk_scale, start_n, k_list_ptr, k_ptr, v_ptr, k_scale_ptr, stride_ks, stride_vs,
                k_count, acc, m_i, l_i, HEAD_DIM, BLOCK_D, BLOCK_N, QK_INT8, PV_FP8, KEYS_PER_SCALE,
                False, WIDE, SIMULATE,
            )  # fmt: skip
        if k_full < k_count:
            acc, m_i, l_i = attend_to_listed_keys(
                q, qk_scale, k_full, k_list_ptr, k_ptr, v_ptr, k_scale_ptr, stride_ks, stride_vs,
                k_count, acc, m_i, l_i, HEAD_DIM, BLOCK_D, BLOCK_N, QK_INT8, PV_FP8, KEYS_PER_SCALE,
                True, WIDE, SIMULATE,
            )  # fmt: skip
    else:
        for start_n in tl.range(0, k_count, BLOCK_N):
            acc, m_i, l_i = attend_to_listed_keys(
                q, qk_scale, start_n, k_list_ptr, k_ptr, v_ptr, k_scale_ptr, stride_ks, stride_vs,
                k_count, acc, m_i, l_i, HEAD_DIM, BLOCK_D, BLOCK_N, QK_INT8, PV_FP8, KEYS_PER_SCALE,
                True, WIDE, SIMULATE,
            )  # fmt: skip
    if PV_FP8:
        v_scale = tl.load(v_scale_ptr + pid_h * HEAD_DIM + offs_d, mask_d, 0.0)
        v_mean = tl.load(v_mean_ptr + pid_h * HEAD_DIM + offs_d, mask_d, 0.0)
        acc, l_i = restore_values(acc, l_i, v_scale, v_mean)
    if HAS_STAND_INS:
        if QK_INT8:
            full_q_ptr += pid_h * stride_full_qh
            q = tl.load(full_q_ptr + q_idx[:, None] * stride_full_qs + offs_d, mask_md, 0)
        first = pid_h * stride_stand_h + q_group * stride_stand_g
        stand_bias_ptr += (pid_h * num_q_groups + q_group) * num_stand_ins
        qk_scale = tl.full([BLOCK_M], sm_scale, tl.float32)
        acc, m_i, l_i = attend_to_stand_ins(
            q, qk_scale, stand_k_ptr + first, stand_v_ptr + first, stand_bias_ptr, num_stand_ins,
            acc, m_i, l_i, HEAD_DIM, BLOCK_D, BLOCK_STAND, SIMULATE,
        )  # fmt: skip
    out, lse = online_softmax_end(acc, m_i, l_i)
    tl.store(
        out_ptr + pid_h * stride_oh + q_idx[:, None] * stride_os + offs_d,
        out.to(out_ptr.dtype.element_ty),
        mask_md,
    )
    if HAS_LSE:
        tl.store(lse_ptr + pid_h * q_len + q_idx, lse, mask_m)


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    *,
    scale: float,
    return_lse: bool,
    quantized: Quantized | None = None,
    skipped: Skipped | None = None,
    launches: tuple[Launch, Launch] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run `dit_accel_kernels.sparse_attention` in Triton; arguments are checked there.

    Args:
        query, key, value: ``[B, H, S, D]``.
        block_map: which groups attend to which.
        scale: softmax scale, above 0.
        return_lse: return the log-sum-exp instead of None.
        quantized: quantized inputs that replace the tensors in the products over selected keys.
        skipped: what stands for a skipped key group; None leaves it out.
        launches: tile shapes for large tiles and for the remainders of query groups; from the static
            table by default.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype, stored as ``[B, Sq, H, D]``; log-sum-exp float32
        ``[B, H, Sq]``.
    """
    inputs = quantized or Quantized(query, key, value)
    batch_size, num_heads, q_len, head_dim = query.shape
    out = query.new_empty(batch_size, q_len, num_heads, head_dim).transpose(1, 2)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32) if return_lse else None
    large, small = launches or _select_launches(inputs, skipped is not None)
    multiple = min(MAX_BLOCK_STAND, max(large.block_n, small.block_n))
    step = count_heads(query, block_map, skipped)
    tiles = _plan_tiles(block_map.query_offsets, q_len, (large, small))
    k_labels = label_keys(block_map)
    for batch in range(batch_size):
        for first in range(0, num_heads, step):
            heads = slice(first, first + step)
            part = (slice(batch, batch + 1), heads)
            map_of_heads = slice_heads(block_map, batch, heads)
            raw = [x[part] for x in (query, key, value)]
            stand_ins = None
            if skipped is not None:
                smoothing = inputs.key_mean
                smoothing = None if smoothing is None else smoothing[part]
                stand_ins = build_stand_ins(raw, smoothing, map_of_heads, scale, skipped, multiple)
            work = _HeadsWork(
                inputs.select_heads(batch, heads),
                raw[0][0],
                map_of_heads,
                *build_key_lists(map_of_heads, k_labels[part].contiguous()),
                stand_ins,
                out[batch, heads],
                None if lse is None else lse[batch, heads],
                scale,
            )
            for launch, starts_and_groups in tiles:
                _launch_tiles(work, launch, [x[part].contiguous() for x in starts_and_groups])
            # Free the memory of these heads before that of the next is taken.
            del work, stand_ins
    if lse is not None and inputs.lse_shift is not None:
        lse += scale * inputs.lse_shift
    return out, lse


def _plan_tiles(
    offsets: Tensor, q_len: int, launches: tuple[Launch, Launch]
) -> list[tuple[Launch, tuple[Tensor, Tensor]]]:
    """Return the query tiles of all heads, large ones and remainders, each with its launch."""
    large, small = launches
    heights = large.block_m, small.block_m
    return [
        (large, build_query_tiles(offsets, q_len, *heights)),
        (small, build_remainder_tiles(offsets, *heights)),
    ]


def count_heads(query: Tensor, block_map: BlockMap, skipped: Skipped | None) -> int:
    """Return for how many heads at a time the key lists and the stand-ins fit into memory."""
    num_q_groups, num_k_groups = block_map.selected.shape[2:]
    list_bytes = 4 * num_q_groups * block_map.key_order.shape[-1]  # of one head
    if skipped == "expansion":
        row_bytes = 2 * query.shape[-1] * query.element_size() + 4
        list_bytes += num_q_groups * num_k_groups * row_bytes
    return max(1, MAX_BYTES // list_bytes)


def _select_launches(inputs: Quantized, stand_ins: bool) -> tuple[Launch, Launch]:
    """Return the tile shapes of large and small tiles from the static table."""
    dtypes = inputs.query.dtype, inputs.value.dtype
    device = inputs.query.shape[-1], compute_capability(inputs.query)
    large, small = (
        select_launch(kind, *dtypes, *device, stand_ins=stand_ins) for kind in ("sparse", "small")
    )
    return large, small


@dataclass(frozen=True)
class _HeadsWork:
    """The work on some heads of one batch element; tensors are ``[H, S, D]``.

    Attributes:
        inputs: queries, keys and values to multiply.
        query: queries before quantization.
        block_map: the map of these heads.
        key_lists: packed keys int32 ``[1, H, Gq, N]``.
        key_counts: number of packed keys, int32 ``[1, H, Gq]``.
        stand_ins: what stands for skipped groups.
        out, lse: views of the outputs.
        scale: softmax scale.
    """

    inputs: Quantized
    query: Tensor
    block_map: BlockMap
    key_lists: Tensor
    key_counts: Tensor
    stand_ins: StandIns | None
    out: Tensor
    lse: Tensor | None
    scale: float


def _launch_tiles(work: _HeadsWork, launch: Launch, tiles: Sequence[Tensor]) -> None:
    """Launch the kernel over the query tiles of one height, given by start and group."""
    inputs, out, lse, block_map = work.inputs, work.out, work.lse, work.block_map
    full_q, q, k, v = (
        make_last_contiguous(x) for x in (work.query, inputs.query, inputs.key, inputs.value)
    )
    heads, q_len, head_dim = q.shape
    num_tiles = tiles[0].shape[-1]
    stand_ins = work.stand_ins
    _sparse_attention_fwd_kernel[(num_tiles, heads)](
        q,
        k,
        v,
        out,
        lse,
        inputs.query_scale,
        inputs.key_scale,
        inputs.value_scale,
        inputs.value_mean,
        full_q,
        *((None, None, None) if stand_ins is None else stand_ins),
        block_map.query_order,
        block_map.query_offsets,
        *tiles,
        work.key_lists,
        work.key_counts,
        work.key_lists.stride(2),
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *out.stride()[:2],
        0 if inputs.query_scale is None else inputs.query_scale.stride(0),
        0 if inputs.key_scale is None else inputs.key_scale.stride(0),
        *full_q.stride()[:2],
        *((0, 0, 0) if stand_ins is None else stand_ins.strides()),
        q_len,
        block_map.selected.shape[2],
        num_tiles,
        work.scale * LOG2E.value,
        HEAD_DIM=head_dim,
        BLOCK_D=pad_to_power_of_two(head_dim, 32),
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        BLOCK_STAND=min(launch.block_n, MAX_BLOCK_STAND),
        QK_INT8=k.dtype == torch.int8,
        PV_FP8=v.dtype == torch.float8_e4m3fn,
        KEYS_PER_SCALE=inputs.keys_per_scale,
        HAS_LSE=lse is not None,
        HAS_STAND_INS=stand_ins is not None,
        TAIL_MASK=launch.tail_mask,
        WIDE=not launch.narrow_offsets or needs_wide_offsets(k, v),
        SIMULATE=is_interpreted(q),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
