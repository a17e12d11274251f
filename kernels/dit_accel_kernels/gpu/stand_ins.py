"""Build what stands for skipped key groups in the softmax of sparse attention: centroids or expansions.

`dit_accel_kernels.sparse_attention` defines both. Each is a key, a value and a bias on the score. Biases are
divided by the softmax scale, because kernels scale scores last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from dit_accel_kernels.gpu.arithmetic import LOG2E, NO_KEY, dot, load_rows
from dit_accel_kernels.gpu.kmeans import kmeans_update
from dit_accel_kernels.gpu.launch import (
    Launch,
    is_interpreted,
    make_last_contiguous,
    needs_wide_offsets,
    pad_to_power_of_two,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_accel_kernels.contracts import BlockMap, Skipped

# The largest number of stand-ins in a tile.
MAX_BLOCK_STAND = 64


class StandIns(NamedTuple):
    """Hold what stands for the key groups of some heads, N of them with padding.

    Attributes:
        keys, values: ``[H, Gq, N, D]`` in the query's dtype, or ``[H, 1, N, D]`` if all query groups share them;
            finite everywhere.
        bias: float32 ``[H, Gq, N]``; -inf for a selected group, an empty one and padding.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor

    def strides(self) -> tuple[int, int, int]:
        """Return the strides of heads and of query groups, which is 0 if they share, and N."""
        heads, groups = self.keys.stride()[:2]
        return heads, groups if self.keys.shape[1] > 1 else 0, self.keys.shape[2]


@triton.jit(do_not_specialize=("k_len", "num_q_groups", "num_k_groups"))
def _expand_groups_kernel(
    q_ptr,  # mean queries [H, Gq, D]
    k_ptr,
    v_ptr,
    k_mean_ptr,  # float32 [H, D], subtracted from the keys
    selected_ptr,  # bool [H, Gq, Gk]
    k_order_ptr,  # int64 [H, Sk]
    k_offsets_ptr,  # int64 [H, Gk + 1]
    stand_k_ptr,  # [H, Gq, N, D]
    stand_v_ptr,  # [H, Gq, N, D]
    bias_ptr,  # float32 [H, Gq, N]
    stride_kh,
    stride_ks,
    stride_vh,
    stride_vs,
    num_stand_ins,
    k_len,
    num_q_groups,
    num_k_groups,
    sm_scale,  # times log2(e)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    WIDE: tl.constexpr,
    SIMULATE: tl.constexpr,
):
    """Attend ``BLOCK_M`` mean queries to one key group, and write its stand-in for each of them."""
    pid_h = tl.program_id(2).to(tl.int64)
    k_group = tl.program_id(1)
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    mask_m, mask_d = offs_m < num_q_groups, offs_d < HEAD_DIM
    row = pid_h * num_q_groups + offs_m  # int64 [M]
    q = load_rows(q_ptr, row * HEAD_DIM, mask_m, HEAD_DIM, BLOCK_D, True)
    # Padding has no tokens, like an empty group.
    column = tl.minimum(k_group, num_k_groups - 1)
    k_offsets_ptr += pid_h * (num_k_groups + 1) + column
    begin = tl.load(k_offsets_ptr).to(tl.int32)
    end = tl.load(k_offsets_ptr + 1).to(tl.int32)
    end = tl.where(k_group < num_k_groups, end, begin)
    k_order_ptr += pid_h * k_len
    k_ptr += pid_h * stride_kh
    v_ptr += pid_h * stride_vh
    acc_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m_i = tl.full([BLOCK_M], NO_KEY, tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    for start_n in tl.range(begin, end, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        mask_n = offs_n < end
        k_idx = tl.load(k_order_ptr + offs_n, mask_n, 0)
        k_idx = k_idx if WIDE else k_idx.to(tl.int32)
        k = load_rows(k_ptr, k_idx * stride_ks, mask_n, HEAD_DIM, BLOCK_D, True)
        v = load_rows(v_ptr, k_idx * stride_vs, mask_n, HEAD_DIM, BLOCK_D, True)
        qk = dot(q, tl.trans(k), SIMULATE) * sm_scale  # [M, N]
        qk = tl.where(mask_n[None, :], qk, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(qk, 1))
        p = tl.exp2(qk - m_new[:, None])
        alpha = tl.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        m_i = m_new
        if not SIMULATE:
            p = p.to(v.dtype)
        acc_k = acc_k * alpha[:, None] + dot(p, k, SIMULATE)
        acc_v = acc_v * alpha[:, None] + dot(p, v, SIMULATE)
    divisor = tl.where(l_i > 0, l_i, 1.0)
    mean = acc_k / divisor[:, None]
    shift = tl.zeros([BLOCK_D], tl.float32)
    if HAS_MEAN:
        shift += tl.load(k_mean_ptr + pid_h * HEAD_DIM + offs_d, mask_d, 0.0)
    key = (mean - shift[None, :]).to(stand_k_ptr.dtype.element_ty)
    # The score of the mean query is exact, whatever rounding did to its key.
    product = tl.sum(q.to(tl.float32) * (key.to(tl.float32) + shift[None, :]), 1)
    bias = (m_i + tl.log2(divisor)) / sm_scale - product
    selected = tl.load(selected_ptr + row * num_k_groups + column, mask_m, 1)
    is_used = (selected == 0) & (begin < end)
    bias = tl.where(is_used, bias, float("-inf"))
    key = tl.where(is_used[:, None], key, 0.0).to(stand_k_ptr.dtype.element_ty)
    value = tl.where(is_used[:, None], acc_v / divisor[:, None], 0.0)
    entry = row * num_stand_ins + k_group
    offs = entry[:, None] * HEAD_DIM + offs_d
    mask_md = mask_m[:, None] & mask_d[None, :]
    tl.store(stand_k_ptr + offs, key, mask_md)
    tl.store(stand_v_ptr + offs, value.to(stand_v_ptr.dtype.element_ty), mask_md)
    tl.store(bias_ptr + entry, bias, mask_m)


def select_expansion_launch(dtype: torch.dtype, block_d: int) -> Launch:
    """Return the tile shape of an expansion, in mean queries and keys; it fits 99 KB of shared memory."""
    if dtype.itemsize == 2:
        return Launch(64, 32, 8, 2) if block_d <= 128 else Launch(32, 16, 4, 2)
    return Launch(32, 16, 4, 2) if block_d <= 128 else Launch(16, 16, 4, 1)


def expand_groups(
    query_means: Tensor,
    key: Tensor,
    value: Tensor,
    key_mean: Tensor | None,
    block_map: BlockMap,
    scale: float,
    multiple: int,
) -> StandIns:
    """Expand all key groups about the mean of each query group.

    Args:
        query_means: float32 ``[1, H, Gq, D]``.
        key, value: ``[1, H, Sk, D]``.
        key_mean: float32 ``[1, H, D]``, subtracted from the keys; 0 by default.
        block_map: map of these heads, as `slice_heads` returns it.
        scale: softmax scale above 0.
        multiple: N is a multiple of this.
    """
    # The series is taken about the rounded mean, so rounding it adds no error.
    query = query_means.to(key.dtype)
    k, v = make_last_contiguous(key), make_last_contiguous(value)
    _, heads, num_q_groups, head_dim = query.shape
    num_k_groups = block_map.selected.shape[-1]
    padded = triton.cdiv(num_k_groups, multiple) * multiple
    keys, values = key.new_empty(2, heads, num_q_groups, padded, head_dim)
    bias = key.new_empty(heads, num_q_groups, padded, dtype=torch.float32)
    block_d = pad_to_power_of_two(head_dim)
    launch = select_expansion_launch(key.dtype, block_d)
    _expand_groups_kernel[(triton.cdiv(num_q_groups, launch.block_m), padded, heads)](
        query,
        k,
        v,
        key_mean,
        block_map.selected,
        block_map.key_order,
        block_map.key_offsets,
        keys,
        values,
        bias,
        *k.stride()[1:3],
        *v.stride()[1:3],
        padded,
        k.shape[2],
        num_q_groups,
        num_k_groups,
        scale * LOG2E.value,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        HAS_MEAN=key_mean is not None,
        WIDE=needs_wide_offsets(k, v),
        SIMULATE=is_interpreted(k),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return StandIns(keys, values, bias)


def average_groups(
    key: Tensor,
    value: Tensor,
    key_mean: Tensor | None,
    block_map: BlockMap,
    scale: float,
    multiple: int,
) -> StandIns:
    """Average the key groups, for all query groups alike; arguments are those of `expand_groups`."""
    keys, values = (
        _average(x, block_map.key_order, block_map.key_offsets)[0] for x in (key, value)
    )
    if key_mean is not None:
        keys -= key_mean[0][:, None]
    log_size = block_map.key_offsets[0].diff(dim=-1).float().log()[:, None] / scale
    bias = torch.where(block_map.selected[0], -torch.inf, log_size)  # [H, Gq, Gk]
    padding = -bias.shape[-1] % multiple
    pad = torch.nn.functional.pad
    keys, values = (pad(x, (0, 0, 0, padding)).to(key.dtype)[:, None] for x in (keys, values))
    return StandIns(keys, values, pad(bias, (0, padding), value=-torch.inf))


def build_stand_ins(
    tensors: Sequence[Tensor],
    key_mean: Tensor | None,
    block_map: BlockMap,
    scale: float,
    skipped: Skipped,
    multiple: int = MAX_BLOCK_STAND,
) -> StandIns:
    """Build the stand-ins of some heads of one batch element.

    Args:
        tensors: query, key and value, ``[1, H, S, D]``.
        skipped: what stands for a group.
        key_mean, block_map, scale, multiple: as in `expand_groups`.
    """
    query, key, value = tensors
    others = (key, value, key_mean, block_map, scale, multiple)
    if skipped == "centroid":
        return average_groups(*others)
    means = _average(query, block_map.query_order, block_map.query_offsets)
    return expand_groups(means, *others)


def _average(tokens: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    """Return the mean of each group of tokens ``[1, H, S, D]``, float32; 0 for an empty group."""
    shape = (*tokens.shape[:2], offsets.shape[-1] - 1, tokens.shape[-1])
    return kmeans_update(tokens, order, offsets, tokens.new_zeros(shape, dtype=torch.float32))
