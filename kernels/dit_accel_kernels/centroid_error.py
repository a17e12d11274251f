"""What it costs to let a key group stand as its centroid: the probe of SVG-EAR (arXiv 2603.08982)."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.contracts import HELD_SCORES, group_of_token
from dit_accel_kernels.kmeans import group_means


def centroid_error(
    query_centroids: Tensor,
    key: Tensor,
    value: Tensor,
    key_order: Tensor,
    key_offsets: Tensor,
    scale: float,
) -> Tensor:
    """Mean squared error per key of ``exp(s_ij) v_j`` in place of ``exp(s_it) v_t`` for the keys t of
    group j, as query group i's centroid sees them; relative to the largest weight of i.

    Args:
        query_centroids: ``[B, H, Gq, D]``.
        key, value: ``[B, H, S, D]``.
        key_order, key_offsets: groups of keys, as in `BlockMap`.
        scale: softmax scale.

    Returns:
        float32 ``[B, H, Gq, Gk]``; 0 for an empty group.
    """
    batch, heads, tokens, _ = key.shape
    groups = (key_order, key_offsets)
    key_means, value_means = group_means(key, *groups), group_means(value, *groups)
    label = group_of_token(*groups)  # [B, H, S]
    mean_of = value_means.gather(2, label[..., None].expand(*label.shape, value.shape[-1]))
    overlap = (value.float() * mean_of).sum(-1)  # [B, H, S]
    square = value.float().square().sum(-1)
    query, keys = scale * query_centroids.float(), key.float().transpose(-1, -2)
    rows = max(1, HELD_SCORES // (batch * heads * tokens))
    pieces = []
    for piece in query.split(rows, dim=2):  # [B, H, R, D]
        logits = piece @ keys  # [B, H, R, S]
        top = logits.amax(-1, keepdim=True)
        weight = (logits - top).exp()
        mean_logits = piece @ key_means.transpose(-1, -2)  # [B, H, R, Gk], none above top
        mean_weight = (mean_logits - top).clamp(max=0).exp()
        # |a v_j - b_t v_t|^2 = a^2 |v_j|^2 - 2 a b_t v_j . v_t + b_t^2 |v_t|^2, mean over t
        parts = (weight * overlap[:, :, None], weight.square() * square[:, :, None])
        cross, own = (group_means(x.transpose(2, 3), *groups).transpose(2, 3) for x in parts)
        kept = mean_weight.square() * value_means.square().sum(-1)[:, :, None]
        pieces.append(kept - 2 * mean_weight * cross + own)
    return torch.cat(pieces, 2).clamp(min=0)
