"""Which key groups a query group attends to: SVG2 (arXiv 2505.18875), section 4.2, in float32
throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.contracts import ContractError


def centroid_logits(
    query_centroids: Tensor,
    key_centroids: Tensor,
    scale: float,
    key_variance: Tensor | None = None,
) -> Tensor:
    """Estimated logit of a key of each group, float32 ``[B, H, Gq, Gk]``: ``scale q_i . k_j``, and with
    the variance of the keys per channel also ``scale^2 / 2 sum_d q_id^2 var_jd``.

    Args:
        query_centroids: ``[B, H, Gq, D]``; key_centroids, key_variance: ``[B, H, Gk, D]``.
        scale: softmax scale.
    """
    query = scale * query_centroids.float()
    logits = query @ key_centroids.float().transpose(-1, -2)
    if key_variance is not None:
        logits = logits + 0.5 * query.square() @ key_variance.float().transpose(-1, -2)
    return logits


def centroid_mass(
    query_centroids: Tensor, key_centroids: Tensor, key_sizes: Tensor, scale: float
) -> Tensor:
    """Estimated share of attention that each key group receives from each query group.

    ``P_ij = n_j exp(s_ij) / sum_j n_j exp(s_ij)`` with ``s_ij = scale * q_i . k_j`` and n_j tokens
    in key group j.

    Args:
        query_centroids: float32 ``[B, H, Gq, D]``.
        key_centroids: float32 ``[B, H, Gk, D]``.
        key_sizes: integer ``[B, H, Gk]``; an empty group gets no mass.
        scale: softmax scale.

    Returns:
        float32 ``[B, H, Gq, Gk]``; rows sum to 1.
    """
    logits = centroid_logits(query_centroids, key_centroids, scale)
    return (logits + key_sizes.float().log()[:, :, None]).softmax(-1)


def select_top_p(
    mass: Tensor,
    top_p: float,
    min_share: float = 0.0,
    *,
    key_sizes: Tensor | None = None,
    max_share: float = 1.0,
) -> Tensor:
    """Smallest set of key groups per query group whose mass reaches ``top_p``.

    The largest group is always kept, the one that crosses ``top_p`` too; further ones are added, by
    falling mass, until ``min_share`` of all groups are kept. Below ``top_p`` = 1 groups without
    mass (empty ones) are never selected.

    Args:
        mass: float32 ``[B, H, Gq, Gk]``, rows sum to 1.
        top_p: in (0, 1]; 1 selects every group.
        min_share: in [0, 1], a share of the number of key groups.
        key_sizes: integer ``[B, H, Gk]``, needed for ``max_share``.
        max_share: no query group keeps more than this share of the keys; groups of the lowest mass are
            dropped. It gives the host a capacity that it knows without asking the device.

    Returns:
        bool ``[B, H, Gq, Gk]``.
    """
    if top_p >= 1 and max_share >= 1:
        return torch.ones_like(mass, dtype=torch.bool)
    ranked, order = mass.sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(-1) - ranked
    rank = torch.arange(mass.shape[-1], device=mass.device)
    keep = (before < top_p) | (rank < int(min_share * mass.shape[-1]))
    if max_share < 1:
        if key_sizes is None:
            raise ContractError("key_sizes", "given with max_share below 1", None)
        sizes = key_sizes[:, :, None].expand_as(order).gather(-1, order)
        keep &= sizes.cumsum(-1) <= max_share * key_sizes.sum(-1)[..., None, None]
    return torch.zeros_like(keep).scatter_(-1, order, keep) & (mass > 0)


def select_budget(score: Tensor, key_sizes: Tensor, budget: Tensor) -> Tensor:
    """Key groups by falling score while a budget of keys lasts; the group that crosses it is kept if that
    comes nearer to the budget.

    Args:
        score: float32 ``[B, H, Gq, Gk]``.
        key_sizes: integer ``[B, H, Gk]``.
        budget: number of keys per query group, ``[B, H, Gq]``.

    Returns:
        bool ``[B, H, Gq, Gk]``.
    """
    order = score.argsort(dim=-1, descending=True, stable=True)
    sizes = key_sizes[:, :, None].expand_as(score).gather(-1, order).float()
    before = sizes.cumsum(-1) - sizes
    keep = before + sizes / 2 <= budget[..., None]
    return torch.zeros_like(keep).scatter_(-1, order, keep)
