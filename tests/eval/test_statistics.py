import math

import numpy as np
import pytest
from scipy import stats

from dit_accel_eval.statistics import mean_ci, median_ci, proportion_ci


def test_mean_ci_equals_scipy() -> None:
    values = np.random.default_rng(0).normal(3, 2, 12)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    estimate = mean_ci(list(values))
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.mean - estimate.half_width == pytest.approx(interval.low)
    assert estimate.n == 12


def test_mean_ci_counts_only_finite_values() -> None:
    estimate = mean_ci([math.inf, "inf", None, 30.0, 32.0])
    assert (estimate.mean, estimate.n) == (31.0, 2)
    assert math.isnan(mean_ci([1.0]).half_width)
    assert mean_ci([]).n == 0


def test_median_ci_needs_six_values_for_an_interval() -> None:
    assert median_ci([1.0, None, 3.0]).median == 2.0
    assert math.isnan(median_ci([1.0, 3.0]).low)
    # The ends are the order statistics 3 and 10, with a level of 1 - 2 * 0.019.
    assert median_ci([float(v) for v in range(12)]) == (5.5, 2.0, 9.0, 12)
    assert median_ci([]).n == 0


def test_proportion_ci_is_wilsons() -> None:
    interval = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert proportion_ci(3, 4) == (3, 4, interval.low, interval.high)
