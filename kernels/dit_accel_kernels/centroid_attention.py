"""Attend to the key groups that a map skips, each as one key: its centroid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.attention import rows_per_chunk
from dit_accel_kernels.contracts import (
    BlockMap,
    check_no_gradient,
    check_shape,
    check_tokens,
    label_tokens,
    resolve_scale,
)
from dit_accel_kernels.kmeans import group_means, group_variance

if TYPE_CHECKING:
    from torch import Tensor


def skipped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    *,
    second_order: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the centroids of the map's key groups and run `centroid_attention` on them.

    Args:
        query, key, value: ``[B, H, S, D]``.
        block_map: groups of queries and keys, and which are selected.
        scale: softmax scale above 0.
        second_order: use the variance of each key group too.

    Returns:
        out ``[B, H, S, D]`` and log-sum-exp float32 ``[B, H, S]``, as `centroid_attention` does.

    Raises:
        ContractError: if an argument does not fit.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_no_gradient(name, tensor)
    groups = (block_map.key_order, block_map.key_offsets)
    key_centroids, value_centroids = group_means(key, *groups), group_means(value, *groups)
    return centroid_attention(
        query,
        key_centroids,
        value_centroids,
        block_map,
        scale=scale,
        key_variance=group_variance(key, *groups, key_centroids) if second_order else None,
    )


def centroid_attention(
    query: Tensor,
    key_centroids: Tensor,
    value_centroids: Tensor,
    block_map: BlockMap,
    *,
    scale: float | None = None,
    key_variance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compensate for skipped key groups by their centroids: SVG-EAR (arXiv 2603.08982).

    The logit of key group j for a query q is ``scale q . k_j + ln n_j``, with n_j tokens in the group.
    With ``key_variance`` it adds ``scale^2 / 2 sum_d q_d^2 var_jd``, the second-order term of
    ``ln sum exp`` over the group. Empty groups get no weight, and neither do the groups that the query's
    own group selects.

    Args:
        query: ``[B, H, Sq, D]``.
        key_centroids: mean key of each key group, ``[B, H, Gk, D]``.
        value_centroids: mean value of each key group, ``[B, H, Gk, D]``.
        block_map: groups of queries and keys, and which are selected.
        scale: softmax scale above 0, ``D ** -0.5`` by default.
        key_variance: variance of the keys of each group per channel, ``[B, H, Gk, D]``.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype; log-sum-exp float32 ``[B, H, Sq]``. A query that
        skips no group gets 0 and -inf.

    Raises:
        ContractError: if an argument does not fit.

    Example:
        Selected groups exactly, skipped groups by their centroids::

            selected = sparse_attention(query, key, value, block_map)
            skipped = centroid_attention(query, key_centroids, value_centroids, block_map)
            out, lse = merge_attention(*selected, *skipped)
    """
    check_tokens("query", query)
    shape = (*query.shape[:2], block_map.selected.shape[3], query.shape[3])
    for name, tensor in (
        ("key_centroids", key_centroids),
        ("value_centroids", value_centroids),
        ("key_variance", key_variance),
    ):
        if tensor is not None:
            check_shape(name, tensor, shape)
            check_no_gradient(name, tensor)
    scale = resolve_scale(query, scale)
    tensors = (query, key_centroids, value_centroids, block_map)
    if query.is_cuda:
        from dit_accel_kernels.gpu.centroid_attention import (
            centroid_attention as centroid_attention_gpu,
        )

        with torch.cuda.device_of(query):
            return centroid_attention_gpu(*tensors, scale=scale, key_variance=key_variance)
    return centroid_attention_reference(*tensors, scale=scale, key_variance=key_variance)


def centroid_attention_reference(
    query: Tensor,
    key_centroids: Tensor,
    value_centroids: Tensor,
    block_map: BlockMap,
    *,
    scale: float,
    key_variance: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute centroid attention by plain products: the oracle of the kernel.

    Arguments and results are those of `centroid_attention`; nothing is checked.
    """
    bias = _group_bias(block_map)  # [B H Gq, Gk]
    bias_rows = _bias_rows(block_map)  # [B H, Sq]
    keys = key_centroids.float().flatten(0, 1).transpose(1, 2)  # [B H, D, Gk]
    values = value_centroids.float().flatten(0, 1)
    chunk = rows_per_chunk(keys.shape[-1])
    outs, lses = [], []
    for start in range(0, query.shape[2], chunk):
        q = query[:, :, start : start + chunk].flatten(0, 1).float()  # [B H, R, D]
        rows = bias_rows[:, start : start + chunk]
        row_bias = bias.index_select(0, rows.flatten()).view(*rows.shape, -1)
        scores = torch.baddbmm(row_bias, q, keys, alpha=scale)
        if key_variance is not None:
            variance = key_variance.float().flatten(0, 1).transpose(1, 2)
            scores = torch.baddbmm(scores, q.square(), variance, alpha=0.5 * scale**2)
        # A row that skips no group has no weights. The largest weight is exp(largest score - lse).
        weights = torch.softmax(scores, -1).nan_to_num_(0.0)
        lses.append(scores.amax(-1) - weights.amax(-1).log().nan_to_num_(neginf=0.0))
        outs.append(weights @ values)
    shape = query.shape
    return torch.cat(outs, 1).view(shape).to(query.dtype), torch.cat(lses, 1).view(shape[:3])


def _group_bias(block_map: BlockMap) -> Tensor:
    """Return the logit bias of each pair of groups, float32 ``[B H Gq, Gk]``.

    The bias is ``ln n`` for a skipped key group, and -inf for a selected or an empty one.
    """
    sizes = block_map.key_offsets.diff(dim=-1)  # [B, H, Gk]
    log_size = sizes.float().log()[:, :, None]
    return torch.where(block_map.selected, -torch.inf, log_size).flatten(0, 2)


def _bias_rows(block_map: BlockMap) -> Tensor:
    """Return the row of `_group_bias` that belongs to each query, int64 ``[B H, Sq]``."""
    labels = label_tokens(block_map.query_order, block_map.query_offsets).flatten(0, 1)
    heads = torch.arange(labels.shape[0], device=labels.device)[:, None]
    return labels + heads * block_map.selected.shape[2]
