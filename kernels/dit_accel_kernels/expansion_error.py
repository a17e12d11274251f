"""Estimate the error of replacing a key group by its expansion, from means and variances of groups alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dit_accel_kernels.kmeans import group_means, group_variance

if TYPE_CHECKING:
    from torch import Tensor

# Largest second-order term of a logit. For larger ones the series no longer says how large the sum is.
MAX_SECOND_ORDER = 4.0
# Largest variance of logits within a group that exp() takes.
MAX_LOGIT_VARIANCE = 4.0


class GroupStatistics(NamedTuple):
    """Mean and variance per channel of groups of tokens, float32 ``[B, H, G, D]``."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(
        cls, tokens: Tensor, order: Tensor, offsets: Tensor, mean: Tensor | None = None
    ) -> GroupStatistics:
        """Compute the statistics of ``[B, H, S, D]`` tokens in groups, as in `BlockMap`.

        Args:
            tokens: ``[B, H, S, D]``.
            order, offsets: groups of tokens.
            mean: means of the groups, if they are known.
        """
        mean = group_means(tokens, order, offsets) if mean is None else mean
        return cls(mean, group_variance(tokens, order, offsets, mean))


def expansion_error(
    query: GroupStatistics,
    key: GroupStatistics,
    value: GroupStatistics,
    key_sizes: Tensor,
    scale: float,
) -> Tensor:
    """Estimate the error of a query if a key group is replaced by its expansion, per root of a key.

    A query of group i differs from the group's mean by d. The logits of the n keys of group j then
    differ from the expansion by ``x = scale d . (k - mean key)``, whose variance over d and k is about
    ``w = scale^2 sum_c var(q_i)_c var(k_j)_c``. So the value of the group is off by at most
    ``sqrt(w) |spread of values|``, and its weight p by a factor ``exp(w / 2) - 1``, here bounded by
    ``(exp(w) - 1) / 2``, which moves the output along the distance from the group's value to it::

        error = p (sqrt(w) spread(v_j) + (exp(w) - 1) / 2 |mean v_j - output|)

    The errors of groups add up in squares, and a group costs n keys. The groups to attend to exactly
    are therefore those with the largest ``error / sqrt(n)``, over all heads and query groups together.

    Args:
        query: statistics of Gq query groups.
        key, value: statistics of Gk key groups.
        key_sizes: number of keys in each group, int64 ``[B, H, Gk]``.
        scale: softmax scale.

    Returns:
        float32 ``[B, H, Gq, Gk]``; 0 for an empty group.
    """
    mean_query = scale * query.mean
    logits = mean_query @ key.mean.transpose(-1, -2)
    second = 0.5 * mean_query.square() @ key.variance.transpose(-1, -2)
    sizes = key_sizes.float()[:, :, None]  # [B, H, 1, Gk]
    mass = (logits + second.clamp(max=MAX_SECOND_ORDER) + sizes.log()).softmax(-1)
    output = mass @ value.mean  # [B, H, Gq, D]
    distance = (
        value.mean.square().sum(-1)[:, :, None]
        + output.square().sum(-1)[..., None]
        - 2 * output @ value.mean.transpose(-1, -2)
    ).clamp(min=0)
    variance = scale**2 * query.variance @ key.variance.transpose(-1, -2)
    variance = variance.clamp(max=MAX_LOGIT_VARIANCE)
    spread = value.variance.sum(-1).sqrt()[:, :, None]
    error = mass * (variance.sqrt() * spread + 0.5 * variance.expm1() * distance.sqrt())
    return error / sizes.clamp(min=1).sqrt()
