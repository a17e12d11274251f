"""Attention to the key groups that a map leaves out, each as one key: its centroid."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.attention import SCORE_ELEMENTS
from dit_accel_kernels.contracts import (
    BlockMap,
    ContractError,
    check_scale,
    check_tokens,
    group_of_token,
)
from dit_accel_kernels.kmeans import group_means, group_variance


def skipped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    *,
    second_order: bool,
) -> tuple[Tensor, Tensor]:
    """`centroid_attention` with the centroids of the map's key groups, all ``[B, H, S, D]``; with
    ``second_order`` also their variance.
    """
    groups = (block_map.key_order, block_map.key_offsets)
    keys, values = group_means(key, *groups), group_means(value, *groups)
    return centroid_attention(
        query,
        keys,
        values,
        block_map,
        scale=scale,
        key_variance=group_variance(key, *groups, keys) if second_order else None,
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
    """Compensation for skipped key groups: SVG-EAR (arXiv 2603.08982).

    The logit of key group j for a query q is ``scale q . k_j + ln n_j``, with n_j tokens in the
    group; with ``key_variance`` also ``scale^2 / 2 sum_d q_d^2 var_jd``, the second order of
    ``ln sum exp`` over the group. Groups that the query's own group selects are left out, and
    empty ones. Merge the result with that of `sparse_attention` by `merge_attention`.

    Args:
        query: ``[B, H, Sq, D]``.
        key_centroids, value_centroids: mean key and value per key group, ``[B, H, Gk, D]``.
        block_map: groups of queries and keys, and what is selected.
        scale: softmax scale above 0, ``D ** -0.5`` by default.
        key_variance: variance of the keys of each group per channel, ``[B, H, Gk, D]``.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype; log-sum-exp float32 ``[B, H, Sq]``. A query
        that skips no group gets 0 and -inf.

    Raises:
        ContractError: naming the argument that does not fit.
    """
    check_tokens("query", query)
    expected = (*query.shape[:2], block_map.selected.shape[3], query.shape[3])
    tables = {"key_centroids": key_centroids, "value_centroids": value_centroids}
    if key_variance is not None:
        tables["key_variance"] = key_variance
    for name, tensor in tables.items():
        if tensor.shape != expected:
            raise ContractError(name, f"of shape {list(expected)}", list(tensor.shape))
    scale = check_scale(query, scale)
    if query.is_cuda:
        from dit_accel_kernels.gpu.centroid_attention import centroid_attention as on_gpu

        with torch.cuda.device_of(query):
            return on_gpu(query, key_centroids, value_centroids, block_map, scale, key_variance)
    return _eager(query, key_centroids, value_centroids, block_map, scale, key_variance)


def _eager(
    query: Tensor,
    key_centroids: Tensor,
    value_centroids: Tensor,
    block_map: BlockMap,
    scale: float,
    key_variance: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Plain products, some query rows at a time; also the oracle of the kernel."""
    sizes = block_map.key_offsets.diff(dim=-1)  # [B, H, Gk]
    bias = sizes.float().log()[:, :, None]  # -inf for an empty group
    group = group_of_token(block_map.query_order, block_map.query_offsets)  # [B, H, Sq]
    skipped = torch.where(block_map.selected, -torch.inf, bias).flatten(0, 2)  # [B H Gq, Gk]
    heads = group.shape[0] * group.shape[1]
    first_group = torch.arange(heads, device=group.device)[:, None] * block_map.selected.shape[2]
    place = group.flatten(0, 1) + first_group  # [B H, Sq], rows of `skipped`
    keys = key_centroids.float().flatten(0, 1).transpose(1, 2)  # [B H, D, Gk]
    values = value_centroids.float().flatten(0, 1)
    rows = max(16, SCORE_ELEMENTS // keys.shape[-1])
    outs, sums = [], []
    for first in range(0, query.shape[2], rows):
        q = query[:, :, first : first + rows].flatten(0, 1).float()  # [B H, R, D]
        labels = place[:, first : first + rows]
        own = skipped.index_select(0, labels.flatten()).view(*labels.shape, -1)
        scores = torch.baddbmm(own, q, keys, alpha=scale)
        if key_variance is not None:
            spread = key_variance.float().flatten(0, 1).transpose(1, 2)
            scores = torch.baddbmm(scores, q.square(), spread, alpha=0.5 * scale**2)
        top = scores.amax(-1)
        weights = torch.softmax(scores, -1).nan_to_num_(0.0)  # a row that skips no group has none
        sums.append(top - weights.amax(-1).log().nan_to_num_(neginf=0.0))
        outs.append(weights @ values)
    shape = query.shape
    return torch.cat(outs, 1).view(shape).to(query.dtype), torch.cat(sums, 1).view(shape[:3])
