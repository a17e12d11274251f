"""Select the key groups that each query group attends to.

This is section 4.2 of Sparse VideoGen2 (arXiv 2505.18875), in float32 throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def centroid_logits(
    query_centroids: Tensor,
    key_centroids: Tensor,
    scale: float,
    key_variance: Tensor | None = None,
) -> Tensor:
    """Estimate the logit of a key of each group.

    The estimate is ``scale q_i . k_j``. With ``key_variance`` it adds the second-order term of a
    log-mean-exp over the group, ``scale^2 / 2 sum_d q_id^2 var_jd``.

    Args:
        query_centroids: ``[B, H, Gq, D]``.
        key_centroids: ``[B, H, Gk, D]``.
        scale: softmax scale.
        key_variance: variance of the keys of each group per channel, ``[B, H, Gk, D]``.

    Returns:
        float32 ``[B, H, Gq, Gk]``.
    """
    query = scale * query_centroids.float()
    logits = query @ key_centroids.float().transpose(-1, -2)
    if key_variance is not None:
        logits = logits + 0.5 * query.square() @ key_variance.float().transpose(-1, -2)
    return logits


def group_logits(
    query_centroids: Tensor, key_centroids: Tensor, key_sizes: Tensor, scale: float
) -> Tensor:
    """Estimate the log-sum-exp of the logits of each key group.

    The estimate is ``s_ij + ln n_j`` with ``s_ij = scale q_i . k_j`` and n_j tokens in key group j.

    Args:
        query_centroids: ``[B, H, Gq, D]``.
        key_centroids: ``[B, H, Gk, D]``.
        key_sizes: integer ``[B, H, Gk]``; an empty group gets ``-inf``.
        scale: softmax scale.

    Returns:
        float32 ``[B, H, Gq, Gk]``.
    """
    logits = centroid_logits(query_centroids, key_centroids, scale)
    return logits + key_sizes.float().log()[:, :, None]


def centroid_mass(
    query_centroids: Tensor, key_centroids: Tensor, key_sizes: Tensor, scale: float
) -> Tensor:
    """Estimate the share of attention that each key group receives from each query group.

    It is the softmax of `group_logits`, which has the same arguments. An empty group gets no mass.

    Returns:
        float32 ``[B, H, Gq, Gk]``; rows sum to 1.
    """
    return group_logits(query_centroids, key_centroids, key_sizes, scale).softmax(-1)


def select_top_p(
    mass: Tensor, top_p: float | Tensor, min_share: float = 0.0, *, logits: Tensor | None = None
) -> Tensor:
    """Select the smallest set of key groups per query group whose mass reaches ``top_p``.

    The set includes the group that crosses ``top_p``, so it is never empty. Further groups are added in
    falling order until ``min_share`` of all groups are selected. Empty groups are selected only if
    ``top_p`` is 1.

    Args:
        mass: float ``[B, H, Gq, Gk]``, rows sum to 1.
        top_p: in (0, 1]; 1 selects every group. A tensor holds one for each head, float ``[H, 1, 1]``.
        min_share: in [0, 1], a share of the number of key groups, rounded down.
        logits: logits of the mass, ``-inf`` for an empty group. They also order the groups whose mass
            underflows to 0. Without them such groups count as empty.

    Returns:
        bool ``[B, H, Gq, Gk]``.
    """
    if not isinstance(top_p, torch.Tensor) and top_p >= 1:
        return torch.ones_like(mass, dtype=torch.bool)
    order = (mass if logits is None else logits).argsort(dim=-1, descending=True, stable=True)
    ranked = mass.gather(-1, order)
    mass_before = ranked.cumsum(-1) - ranked
    rank = torch.arange(mass.shape[-1], device=mass.device)
    least = int(min_share * mass.shape[-1] + 1e-9)  # 0.29 of 100 groups are 29
    selected = (mass_before < top_p) | (rank < least)
    has_keys = mass > 0 if logits is None else logits > -torch.inf
    chosen = torch.zeros_like(selected).scatter_(-1, order, selected) & has_keys
    return chosen | (top_p >= 1) if isinstance(top_p, torch.Tensor) else chosen


def select_budget(score: Tensor, key_sizes: Tensor, budget: Tensor) -> Tensor:
    """Select key groups by falling score while a budget of keys lasts.

    The group that crosses the budget is selected if that comes nearer to the budget.

    Args:
        score: float32 ``[B, H, Gq, Gk]``.
        key_sizes: integer ``[B, H, Gk]``.
        budget: number of keys per query group, ``[B, H, Gq]``.

    Returns:
        bool ``[B, H, Gq, Gk]``.
    """
    order = score.argsort(dim=-1, descending=True, stable=True)
    sizes = key_sizes[:, :, None].expand_as(score).gather(-1, order).float()
    keys_before = sizes.cumsum(-1) - sizes
    selected = keys_before + sizes / 2 <= budget[..., None]
    return torch.zeros_like(selected).scatter_(-1, order, selected)
