"""Estimate the error of replacing a key group by its centroid.

This is the error probe of SVG-EAR (arXiv 2603.08982).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.contracts import MAX_SCORES, check_no_gradient, label_tokens
from dit_accel_kernels.kmeans import group_means

if TYPE_CHECKING:
    from torch import Tensor


def centroid_error(
    query_centroids: Tensor,
    key: Tensor,
    value: Tensor,
    key_order: Tensor,
    key_offsets: Tensor,
    scale: float,
) -> Tensor:
    """Estimate the error per key of using a group's centroid in place of its keys.

    The error of key group j for query group i is the mean of ``|exp(s_ij) v_j - exp(s_it) v_t|^2`` over
    the keys t of group j. ``s_it`` is the logit of key t for the centroid of query group i, less the
    largest such logit over all keys. ``s_ij`` and ``v_j`` are those of the group's mean key and value.

    Args:
        query_centroids: ``[B, H, Gq, D]``.
        key, value: ``[B, H, S, D]``.
        key_order, key_offsets: groups of keys, as in `BlockMap`.
        scale: softmax scale.

    Returns:
        float32 ``[B, H, Gq, Gk]``; 0 for an empty group.

    Raises:
        ContractError: if a tensor requires a gradient.
    """
    for name, tensor in (("query_centroids", query_centroids), ("key", key), ("value", value)):
        check_no_gradient(name, tensor)
    batch, heads, tokens, _ = key.shape
    groups = (key_order, key_offsets)
    key_means, value_means = group_means(key, *groups), group_means(value, *groups)
    labels = label_tokens(*groups)  # [B, H, S]
    index = labels[..., None].expand(*labels.shape, value.shape[-1])
    overlap = (value.float() * value_means.gather(2, index)).sum(-1)  # v_j . v_t, [B, H, S]
    square = value.float().square().sum(-1)  # |v_t|^2
    mean_square = value_means.square().sum(-1)[:, :, None]  # |v_j|^2, [B, H, 1, Gk]
    query, keys = scale * query_centroids.float(), key.float().transpose(-1, -2)
    chunk = max(1, MAX_SCORES // (batch * heads * tokens))
    errors = []
    for q in query.split(chunk, dim=2):  # [B, H, R, D]
        logits = q @ keys  # [B, H, R, S]
        max_logit = logits.amax(-1, keepdim=True)
        weight = (logits - max_logit).exp()
        # Rounding could put a mean logit above the largest logit, hence the clamp.
        mean_logits = q @ key_means.transpose(-1, -2)  # [B, H, R, Gk]
        mean_weight = (mean_logits - max_logit).clamp(max=0).exp()
        # |a v_j - b_t v_t|^2 = a^2 |v_j|^2 - 2 a b_t v_j . v_t + b_t^2 |v_t|^2, mean over t
        per_token = (weight * overlap[:, :, None], weight.square() * square[:, :, None])
        cross, exact = (group_means(x.transpose(2, 3), *groups).transpose(2, 3) for x in per_token)
        errors.append(mean_weight.square() * mean_square - 2 * mean_weight * cross + exact)
    return torch.cat(errors, 2).clamp(min=0)
