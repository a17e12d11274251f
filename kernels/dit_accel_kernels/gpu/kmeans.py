"""Run k-means in Triton.

Assignment keeps a running argmax, so no matrix of tokens x clusters exists. The update averages
sorted segments without atomics, so equal input gives equal bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from dit_accel_kernels.gpu.arithmetic import dot, load_rows
from dit_accel_kernels.gpu.launch import (
    Launch,
    compute_capability,
    is_interpreted,
    make_last_contiguous,
    pad_to_power_of_two,
)

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit(do_not_specialize=("seq_len",))
def _kmeans_assign_kernel(
    x_ptr,
    centroids_ptr,  # [BH, padded K, D], the tokens' dtype
    half_norm_ptr,  # float32 [BH, padded K], inf for padding
    labels_ptr,  # int64 [BH, S]
    stride_xb,
    stride_xh,
    stride_xs,
    padded_clusters,
    num_heads,
    seq_len,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANE_ARGMAX: tl.constexpr,
    SIMULATE: tl.constexpr,
):
    """Write the nearest centroid of ``BLOCK_S`` tokens of one head."""
    pid_bh = tl.program_id(1).to(tl.int64)
    offs_s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    offs_d = tl.arange(0, BLOCK_D)
    mask_s, mask_d = offs_s < seq_len, offs_d < HEAD_DIM
    x_ptr += (pid_bh // num_heads) * stride_xb + (pid_bh % num_heads) * stride_xh
    x = tl.load(
        x_ptr + offs_s.to(tl.int64)[:, None] * stride_xs + offs_d,
        mask_s[:, None] & mask_d[None, :],
        0,
    )
    if LANE_ARGMAX:
        # Each lane keeps its own best, and one reduction at the end finds the best of them.
        best = tl.full([BLOCK_S, BLOCK_K], float("-inf"), tl.float32)
        label = tl.zeros([BLOCK_S, BLOCK_K], tl.int32)
    else:
        best = tl.full([BLOCK_S], float("-inf"), tl.float32)
        label = tl.zeros([BLOCK_S], tl.int32)
    centroids_ptr += pid_bh * padded_clusters * HEAD_DIM
    half_norm_ptr += pid_bh * padded_clusters
    for start_k in tl.range(0, padded_clusters, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        centroids = load_rows(centroids_ptr, offs_k * HEAD_DIM, None, HEAD_DIM, BLOCK_D, False)
        # The largest x . c - |c|^2 / 2 belongs to the nearest centroid.
        score = dot(x, tl.trans(centroids), SIMULATE) - tl.load(half_norm_ptr + offs_k)[None, :]
        if LANE_ARGMAX:
            label = tl.where(score > best, start_k, label)
            best = tl.maximum(best, score)
        else:
            block_best, block_label = tl.max(score, 1, return_indices=True)
            label = tl.where(block_best > best, start_k + block_label, label)
            best = tl.maximum(best, block_best)
    if LANE_ARGMAX:
        is_best = best == tl.max(best, 1)[:, None]
        label += tl.arange(0, BLOCK_K)[None, :]
        # The first of equally near centroids.
        label = tl.min(tl.where(is_best, label, padded_clusters), 1)
    tl.store(labels_ptr + pid_bh * seq_len + offs_s, label.to(tl.int64), mask_s)


def select_assign_launch(dtype: torch.dtype, block_d: int, arch: int) -> Launch:
    """Return the tile shape of an assignment, in tokens and centroids; it fits 99 KB of shared memory."""
    if block_d > 128:
        return Launch(64, 32, 4, 2) if dtype.itemsize == 2 else Launch(32, 16, 4, 2)
    if dtype.itemsize == 2:
        if block_d == 128 and arch // 10 == 9:
            return Launch(128, 128, 8, 2)
        wide = block_d == 128 or arch // 10 == 10
        return Launch(128, 64, 8 if wide else 4, 3)
    return Launch(64, 64 if block_d == 64 else 32, 4, 2)


def kmeans_assign(
    tokens: Tensor, centroids: Tensor, *, launch: Launch | None = None, lane_argmax: bool = True
) -> Tensor:
    """Run `dit_accel_kernels.kmeans_assign` in Triton; arguments are checked there.

    Centroids are rounded to the tokens' dtype because the matrix unit needs one dtype.

    Args:
        tokens: ``[B, H, S, D]``.
        centroids: float32 ``[B, H, K, D]``.
        launch: tile shape, in tokens and centroids.
        lane_argmax: reduce over centroids once, at the end, instead of once a tile.

    Returns:
        labels int64 ``[B, H, S]``.
    """
    tokens = make_last_contiguous(tokens)
    batch, heads, seq_len, head_dim = tokens.shape
    labels = torch.empty(batch, heads, seq_len, dtype=torch.int64, device=tokens.device)
    block_d = pad_to_power_of_two(head_dim)
    launch = launch or select_assign_launch(tokens.dtype, block_d, compute_capability(tokens))
    padding = -centroids.shape[2] % launch.block_n
    rounded = centroids.to(tokens.dtype)
    half_norm = 0.5 * rounded.float().square().sum(-1)  # [B, H, K]
    # Padding is at infinity, so no token is nearest to it.
    half_norm = torch.nn.functional.pad(half_norm, (0, padding), value=torch.inf)
    rounded = torch.nn.functional.pad(rounded, (0, 0, 0, padding)).contiguous()
    _kmeans_assign_kernel[(triton.cdiv(seq_len, launch.block_m), batch * heads)](
        tokens,
        rounded,
        half_norm,
        labels,
        *tokens.stride()[:3],
        rounded.shape[2],
        heads,
        seq_len,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_S=launch.block_m,
        BLOCK_K=launch.block_n,
        LANE_ARGMAX=lane_argmax,
        SIMULATE=is_interpreted(tokens),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return labels


@triton.jit(do_not_specialize=("seq_len", "num_clusters"))
def _kmeans_update_kernel(
    x_ptr,
    order_ptr,  # int64 [BH, S]
    offsets_ptr,  # int64 [BH, K + 1]
    centroids_ptr,  # float32 [BH, K, D], kept by empty clusters
    means_ptr,  # float32 [BH, K, D]
    stride_xb,
    stride_xh,
    stride_xs,
    num_heads,
    seq_len,
    num_clusters,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SQUARED: tl.constexpr,
):
    """Write the mean of the tokens of one cluster, or of their squares if ``SQUARED``."""
    pid_bh = tl.program_id(1).to(tl.int64)
    pid_k = tl.program_id(0)
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < HEAD_DIM
    x_ptr += (pid_bh // num_heads) * stride_xb + (pid_bh % num_heads) * stride_xh
    begin = tl.load(offsets_ptr + pid_bh * (num_clusters + 1) + pid_k)
    end = tl.load(offsets_ptr + pid_bh * (num_clusters + 1) + pid_k + 1)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for start_s in tl.range(begin, end, BLOCK_S):
        offs_s = start_s + tl.arange(0, BLOCK_S)
        mask_s = offs_s < end
        x_idx = tl.load(order_ptr + pid_bh * seq_len + offs_s, mask_s, 0)
        x = tl.load(
            x_ptr + x_idx[:, None] * stride_xs + offs_d, mask_s[:, None] & mask_d[None, :], 0
        )
        x = x.to(tl.float32)
        acc += tl.sum(x * x if SQUARED else x, 0)
    offs_kd = (pid_bh * num_clusters + pid_k) * HEAD_DIM + offs_d
    centroid = tl.load(centroids_ptr + offs_kd, mask_d, 0.0)
    size = (end - begin).to(tl.float32)
    mean = tl.where(end > begin, acc / tl.maximum(size, 1.0), centroid)
    tl.store(means_ptr + offs_kd, mean, mask_d)


def kmeans_update(
    tokens: Tensor, order: Tensor, offsets: Tensor, centroids: Tensor, *, squared: bool = False
) -> Tensor:
    """Average the tokens of each cluster in Triton.

    Args:
        tokens: ``[B, H, S, D]``.
        order, offsets: clusters as `dit_accel_kernels.group_by_label` returns them.
        centroids: ``[B, H, K, D]``, returned for empty clusters.
        squared: average the squares of the tokens instead.

    Returns:
        float32 ``[B, H, K, D]``.
    """
    tokens = make_last_contiguous(tokens)
    batch, heads, seq_len, head_dim = tokens.shape
    num_clusters = centroids.shape[2]
    centroids = centroids.float().contiguous()
    means = torch.empty_like(centroids)
    _kmeans_update_kernel[(num_clusters, batch * heads)](
        tokens,
        order.contiguous(),
        offsets.contiguous(),
        centroids,
        means,
        *tokens.stride()[:3],
        heads,
        seq_len,
        num_clusters,
        HEAD_DIM=head_dim,
        BLOCK_D=pad_to_power_of_two(head_dim),
        BLOCK_S=32,
        SQUARED=squared,
        num_warps=4,
    )
    return means
