"""Measure the rates of the cost model: time attention calls of many sizes, then fit a regression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dit_accel import SVG2, AttentionCall, SVGEar
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.generation.placement import torch_dtype
from dit_accel.methods.clustered import Clustered
from dit_accel.runtime.cost_model import Rates, SparseRates, Work
from dit_accel_eval.bench.baselines import full_precision_baselines
from dit_accel_eval.bench.cases import Inputs, Shape, make_inputs
from dit_accel_eval.bench.layer import make_attention_call
from dit_accel_eval.bench.measure import quick_median_seconds
from dit_accel_eval.bench.run import machine
from dit_accel_kernels import ContractError

SHAPES = tuple(
    Shape(heads, tokens, head_dim)
    for heads, head_dim in ((2, 64), (4, 64), (4, 128), (12, 64))
    for tokens in (768, 1536, 3072, 6144, *((9216,) if heads < 12 else ()))
)
LARGE_SHAPES = tuple(
    Shape(heads, tokens, head_dim)
    for heads, head_dim in ((12, 64), (12, 128), (24, 128))
    for tokens in (4_096, 8_192, 16_384, 32_768, 65_536)
)
# The fit does not see these shapes. They check its predictions.
UNSEEN_SHAPES = (
    Shape(3, 2304, 64),
    Shape(4, 3328, 64),
    Shape(6, 4608, 80),
    Shape(2, 7680, 128),
    Shape(8, 5120, 64),
)
UNSEEN_LARGE_SHAPES = (
    Shape(12, 12_288, 64),
    Shape(16, 17_776, 64),
    Shape(12, 32_760, 128),
    Shape(24, 23_040, 128),
    Shape(20, 49_152, 128),
)
KEY_SHARES = (0.08, 0.3)
# A GPU needs fewer rounds, because no other program slows it.
ROUNDS, GPU_ROUNDS = 5, 3
# Parts of a call that are skipped when a plan is reused.
PLANNING = ("kmeans", "selection")


@dataclass
class SparseTimings:
    """Times of one sparse call from a warm start.

    Attributes:
        work: Size and density of the call.
        seconds: Time of the whole call, one per round.
        planning: Time of its planning, one per round.
    """

    work: Work
    seconds: list[float] = field(default_factory=list)
    planning: list[float] = field(default_factory=list)


@dataclass
class ShapeTimings:
    """Times of all calls at one shape.

    Attributes:
        shape: Size of the calls.
        dense: Times of dense attention by backend, one per round.
        sparse: Times of sparse calls by method.
    """

    shape: Shape
    dense: dict[str, list[float]] = field(default_factory=dict)
    sparse: dict[Clustered, SparseTimings] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        """The fastest dense attention."""
        return min(self.dense, key=lambda name: median(self.dense[name]))

    @property
    def work(self) -> Work:
        """The work of a dense call."""
        return Work(self.shape.heads, self.shape.tokens, self.shape.head_dim)

    def speedup(self, call: SparseTimings) -> float:
        """Return the median speed-up of a sparse call over the rounds.

        Times of the same round are compared, because other programs slow both by the same factor.
        """
        dense = self.dense[self.backend]
        return median(d / s for d, s in zip(dense, call.seconds, strict=True))


def bench_rates(dtype: str, device: str) -> Rates:
    """Measure and fit the rates of this machine. ``about["unseen"]`` holds the check on shapes that were not fitted."""
    shapes, unseen, rounds = SHAPES, UNSEEN_SHAPES, ROUNDS
    if device != "cpu":
        shapes, unseen, rounds = LARGE_SHAPES, UNSEEN_LARGE_SHAPES, GPU_ROUNDS
    timings = measure_shapes((*shapes, *unseen), dtype, device, rounds)
    rates = fit_rates(timings[: len(shapes)], dtype, device)
    checks = list(compare_predictions(rates, timings[len(shapes) :]))
    return replace(rates, about={**rates.about, "unseen": checks})


def measure_shapes(
    shapes: Sequence[Shape], dtype: str, device: str, rounds: int
) -> list[ShapeTimings]:
    """Time all calls in turn, in several rounds.

    A program that interferes for a minute then slows one round of many calls, and not all rounds of one call.
    """
    timings = [ShapeTimings(shape) for shape in shapes]
    with tqdm(total=rounds * len(timings), desc="rates") as bar:
        for _ in range(rounds):
            for timing in timings:
                add_round(timing, make_inputs(timing.shape, torch_dtype(dtype), device), device)
                bar.update()
    return timings


def add_round(timings: ShapeTimings, tensors: Inputs, device: str) -> None:
    """Time each dense attention of this machine, and each method at each share of the keys."""
    heads_first = [x.transpose(1, 2) for x in tensors]
    for name, attend in full_precision_baselines(device).items():
        # A backend may have no kernel for this shape or dtype.
        with suppress(RuntimeError, ContractError):
            seconds = quick_median_seconds(partial(attend, *heads_first))
            timings.dense.setdefault(name, []).append(seconds)
    call = make_attention_call(timings.shape, tensors)
    for share in KEY_SHARES:
        for method in select_methods(share):
            add_sparse_call(timings, method, call)


def select_methods(key_share: float) -> tuple[Clustered, ...]:
    """Return the methods to measure at a share of the keys."""
    return SVG2(top_p=1e-6, min_key_share=key_share), SVGEar(density=key_share, refresh=1)


def add_sparse_call(timings: ShapeTimings, method: Clustered, call: AttentionCall) -> None:
    """Time a sparse call with a warm start, as in the middle of a run."""
    state = method.new_state()
    # The first call starts cold, so it is not timed.
    attended = method.attend(call, state, Ops(Timer()))
    assert attended is not None
    timer = Timer()
    seconds = quick_median_seconds(partial(method.attend, call, state, Ops(timer)))
    if method not in timings.sparse:
        query_clusters, key_clusters = method.clusters(call.tokens)
        work = replace(
            timings.work,
            density=float(attended.density),
            query_clusters=query_clusters,
            key_clusters=key_clusters,
        )
        timings.sparse[method] = SparseTimings(work)
    parts = timer.seconds()
    planning_share = sum(parts[name] for name in PLANNING) / sum(parts.values())
    timings.sparse[method].seconds.append(seconds)
    timings.sparse[method].planning.append(planning_share * seconds)


def fit_rates(timings: Sequence[ShapeTimings], dtype: str, device: str) -> Rates:
    """Fit the rates of dense attention and of each method to measured times."""
    works = [timing.work for timing in timings]
    seconds = [median(timing.dense[timing.backend]) for timing in timings]
    dense = fit_nonnegative([work.dense_terms() for work in works], seconds)
    predicted = [float(np.dot(dense, work.dense_terms())) for work in works]
    errors = {"dense": mean_relative_error(predicted, seconds)}
    sparse = {}
    for name, calls in group_by_method(timings).items():
        sparse[name] = fit_sparse_rates(calls)
        predicted = [sparse[name].seconds(call.work) for call in calls]
        errors[name] = mean_relative_error(predicted, [median(call.seconds) for call in calls])
    backends = [timing.backend for timing in timings]
    return Rates(
        torch.device(device).type,
        dtype,
        max(set(backends), key=backends.count),
        dense,
        sparse,
        errors,
        {**machine(device), "calls": sum(len(timing.sparse) + 1 for timing in timings)},
    )


def group_by_method(timings: Sequence[ShapeTimings]) -> dict[str, list[SparseTimings]]:
    """Return the sparse calls of all shapes by the name of their method."""
    groups: dict[str, list[SparseTimings]] = {}
    for timing in timings:
        for method, call in timing.sparse.items():
            groups.setdefault(method.name, []).append(call)
    return groups


def fit_sparse_rates(calls: Sequence[SparseTimings]) -> SparseRates:
    """Fit the rates of one method."""
    planning = [median(call.planning) for call in calls]
    rest = [median(call.seconds) - plan for call, plan in zip(calls, planning, strict=True)]
    return SparseRates(
        fit_nonnegative([call.work.plan_terms() for call in calls], planning),
        fit_nonnegative([call.work.run_terms() for call in calls], rest),
    )


def fit_nonnegative(terms: Sequence[np.ndarray], seconds: Sequence[float]) -> tuple[float, ...]:
    """Return seconds per term by least squares on the relative error, none of them negative."""
    from sklearn.linear_model import LinearRegression

    relative = np.array(terms) / np.array(seconds)[:, None]
    scale = relative.max(axis=0) + 1e-30
    model = LinearRegression(positive=True, fit_intercept=False)
    model.fit(relative / scale, np.ones(len(relative)))
    return tuple(map(float, model.coef_ / scale))


def mean_relative_error(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Return the mean relative error of predictions."""
    return float(np.abs(np.array(predicted) / np.array(measured) - 1).mean())


def compare_predictions(rates: Rates, timings: Sequence[ShapeTimings]) -> Iterator[dict[str, Any]]:
    """Yield the measured and the predicted speed-up of every sparse call."""
    for timing in timings:
        for method, call in timing.sparse.items():
            measured, predicted = timing.speedup(call), rates.speedup(method.name, call.work)
            yield {
                "method": method.name,
                **asdict(call.work),
                "measured": measured,
                "predicted": predicted,
                "deviation": predicted / measured - 1,
            }
