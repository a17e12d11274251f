"""Means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """Mean of n finite values and the half width of its 95 % interval (Student's t)."""

    mean: float
    half_width: float
    n: int


def estimate(values: Sequence[float | str | None]) -> Estimate:
    """Mean and interval of the finite values; what is None, NaN or infinite is left out, and n says so."""
    numbers = np.array([float(v) for v in values if v is not None])
    finite = numbers[np.isfinite(numbers)]
    n = len(finite)
    if n == 0:
        return Estimate(math.nan, math.nan, 0)
    if n == 1:
        return Estimate(float(finite[0]), math.nan, 1)
    width = stats.sem(finite) * stats.t.ppf(0.975, n - 1)
    return Estimate(float(finite.mean()), float(width), n)


class Median(NamedTuple):
    """Middle of n values, with the ends of its 95 % interval, NaN for fewer than six."""

    median: float
    low: float
    high: float
    n: int


def middle(values: Sequence[float | None], level: float = 0.95) -> Median:
    """Median and its interval by order statistics, which takes nothing for granted; None is left out."""
    found = [float(v) for v in values if v is not None]
    if not found:
        return Median(math.nan, math.nan, math.nan, 0)
    interval = stats.quantile_test(found, p=0.5).confidence_interval(level)
    ends = float(interval.low), float(interval.high)
    return Median(float(np.median(found)), *ends, len(found))


class Share(NamedTuple):
    """``right`` of ``n``, with Wilson's 95 % interval."""

    right: int
    n: int
    low: float
    high: float


def share(verdicts: Sequence[bool]) -> Share:
    """How many are true."""
    right, n = sum(verdicts), len(verdicts)
    interval = stats.binomtest(right, n).proportion_ci(method="wilson")
    return Share(right, n, float(interval.low), float(interval.high))
