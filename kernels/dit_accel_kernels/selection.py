"""Select the key groups that each query group attends to, in float32 throughout.

`select_top_p` is section 4.2 of Sparse VideoGen2 (arXiv 2505.18875), and `select_top_cdf` is equation 4 of
SpargeAttn (arXiv 2502.18137).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.cpu import compiled
from dit_accel_kernels.cpu.compiled import library_for

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


def select_top_p_budget(
    score: Tensor, logits: Tensor, key_sizes: Tensor, top_p: float, min_share: float
) -> Tensor:
    """Select key groups by falling score, at the price of those that hold the most mass.

    This is the rule of SVG-EAR (arXiv 2603.08982) as released. A query group may spend as many keys as
    `select_top_p` takes with ``top_p`` and twice ``min_share``. The ``min_share`` of the groups with the
    most mass is selected first, at least one of them if ``min_share`` is above 0. The groups of the
    largest score then follow while any keys are left, so the group that crosses the budget is selected.

    Args:
        score: float32 ``[B, H, Gq, Gk]``.
        logits: log of the mass of each key group, as `group_logits` estimates it, ``[B, H, Gq, Gk]``.
        key_sizes: integer ``[B, H, Gk]``; an empty group is never selected.
        top_p: in (0, 1].
        min_share: in [0, 1], a share of the number of key groups, rounded down.

    Returns:
        bool ``[B, H, Gq, Gk]``.
    """
    sizes = key_sizes[:, :, None].expand_as(score).float()
    paid = select_top_p(logits.softmax(-1), top_p, 2 * min_share, logits=logits)
    reserved = torch.zeros_like(paid)
    if min_share > 0:
        reserved = select_top_count(logits, max(1, int(min_share * score.shape[-1] + 1e-9)))
    cost = sizes.masked_fill(reserved, 0.0)
    left = (sizes * paid - sizes * reserved).sum(-1, keepdim=True)
    order = score.masked_fill(reserved, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    ranked = cost.gather(-1, order)
    affordable = ranked.cumsum(-1) - ranked < left
    return (reserved.scatter(-1, order, affordable) | reserved) & (sizes > 0)


def select_top_cdf(mass: Tensor, threshold: float) -> Tensor:
    """Select the largest key groups per query group while their summed mass stays within a threshold.

    The group that crosses the threshold is left out, unlike in `select_top_p`. The largest group is always
    selected.

    Args:
        mass: float ``[B, H, Gq, Gk]``, rows sum to 1.
        threshold: in (0, 1]; 1 selects every group.

    Returns:
        bool ``[B, H, Gq, Gk]``.
    """
    if threshold >= 1:
        return torch.ones_like(mass, dtype=torch.bool)
    order = mass.argsort(dim=-1, descending=True, stable=True)
    selected = mass.gather(-1, order).cumsum(-1) <= threshold
    selected[..., 0] = True
    return torch.zeros_like(selected).scatter_(-1, order, selected)


def select_top_count(score: Tensor, count: int) -> Tensor:
    """Select the ``count`` key groups of the largest scores per query group.

    Of equal scores the first one is selected.

    Args:
        score: float ``[B, H, Gq, Gk]``.
        count: number of groups, at least 1; a count above Gk selects every group.

    Returns:
        bool ``[B, H, Gq, Gk]``.
    """
    order = score.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order, True)


# Bins of a histogram of scores, and how often the bin that holds the threshold is divided again.


def select_shared_budget(score: Tensor, cost: Tensor, budget: float) -> Tensor:
    """Select the items of each row with the largest scores, as many as a budget pays for.

    Floats of at least 0 are in the order of their bits. So histograms of the costs, over the upper bits and
    then over the lower ones, find the threshold, and nothing is sorted and nothing waits for the device. The
    items that cross the budget, whose scores are equal, are selected if that comes nearer to the budget.

    Args:
        score: float32 ``[R, N]``, 0 or more.
        cost: cost of each item, int64 ``[R, N]``.
        budget: share of the total cost of a row, in [0, 1]. 1 selects everything.

    Returns:
        bool ``[R, N]``.
    """
    if budget >= 1:
        return torch.ones_like(score, dtype=torch.bool)
    library = library_for(score)
    if score.device.type == "cpu" and not isinstance(library, str):
        return compiled.select_shared_budget(library, score, cost, budget)
    bits = score.nan_to_num(0.0).abs().view(torch.int32)  # faulty tokens are the guard's matter
    allowed = (budget * cost.sum(-1, keepdim=True).double()).long()
    spent = torch.zeros_like(allowed)
    chosen = torch.zeros_like(score, dtype=torch.bool)
    undecided = ~chosen
    for bins, count in ((bits >> 16, 1 << 15), (bits & 0xFFFF, 1 << 16)):
        histogram = torch.zeros(len(score), count, dtype=torch.int64, device=score.device)
        histogram.scatter_add_(1, bins.long(), cost * undecided)
        # Cost of what is chosen if the threshold is the lower edge of each bin.
        above = spent + histogram.flip(-1).cumsum(-1).flip(-1)
        affordable = (above > allowed).sum(-1, keepdim=True)  # the lowest bin that is paid for
        spent = torch.cat([above, spent], -1).gather(-1, affordable)
        chosen |= undecided & (bins >= affordable)
        undecided &= bins == affordable - 1
    excess = above.gather(-1, (affordable - 1).clamp(min=0)) - allowed
    return chosen | (undecided & (excess < allowed - spent))
