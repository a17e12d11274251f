"""Means, medians and proportions with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class MeanInterval(NamedTuple):
    """Mean of ``n`` finite values and the half width of its 95 % interval (Student's t)."""

    mean: float
    half_width: float
    n: int


class MedianInterval(NamedTuple):
    """Median of ``n`` values and the ends of its interval, which are NaN for fewer than six values."""

    median: float
    low: float
    high: float
    n: int


class ProportionInterval(NamedTuple):
    """Number of successes among ``n`` trials and the ends of Wilson's interval of their share."""

    right: int
    n: int
    low: float
    high: float


def mean_ci(values: Sequence[float | str | None]) -> MeanInterval:
    """Return the mean and its interval over the finite values; ``n`` counts only those."""
    numbers = np.array([float(v) for v in values if v is not None])
    finite = numbers[np.isfinite(numbers)]
    n = len(finite)
    if n == 0:
        return MeanInterval(math.nan, math.nan, 0)
    if n == 1:
        return MeanInterval(float(finite[0]), math.nan, 1)
    half_width = stats.sem(finite) * stats.t.ppf(0.975, n - 1)
    return MeanInterval(float(finite.mean()), float(half_width), n)


def median_ci(values: Sequence[float | None], level: float = 0.95) -> MedianInterval:
    """Return the median and its interval by order statistics, which assume no distribution; skip None."""
    numbers = [float(v) for v in values if v is not None]
    if not numbers:
        return MedianInterval(math.nan, math.nan, math.nan, 0)
    interval = stats.quantile_test(numbers, p=0.5).confidence_interval(level)
    return MedianInterval(
        float(np.median(numbers)), float(interval.low), float(interval.high), len(numbers)
    )


def proportion_ci(right: int, n: int, level: float = 0.95) -> ProportionInterval:
    """Return the interval of the share of ``right`` among ``n`` trials (Wilson 1927)."""
    interval = stats.binomtest(right, n).proportion_ci(level, method="wilson")
    return ProportionInterval(right, n, float(interval.low), float(interval.high))
