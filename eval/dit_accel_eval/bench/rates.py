"""The rates of a machine: attention calls of many sizes, and a regression of their seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LinearRegression
from tqdm import tqdm

from dit_accel import SVG2, AttentionCall, SVGEar
from dit_accel.core.attention_call import CallContext
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.generation.placement import torch_dtype
from dit_accel.methods.clustered import Clustered
from dit_accel.runtime.cost_model import Rates, SparseRates, Work
from dit_accel_eval.bench.baselines import full_precision
from dit_accel_eval.bench.cases import Inputs, Shape, clustered
from dit_accel_eval.bench.measure import seconds_now
from dit_accel_eval.bench.run import machine
from dit_accel_pipelines import TokenLayout

SHAPES = tuple(
    Shape(heads, tokens, head_dim)
    for heads, head_dim in ((2, 64), (4, 64), (4, 128), (12, 64))
    for tokens in (768, 1536, 3072, 6144, *((9216,) if heads < 12 else ()))
)
LARGE = tuple(
    Shape(heads, tokens, head_dim)
    for heads, head_dim in ((12, 64), (12, 128), (24, 128))
    for tokens in (4_096, 8_192, 16_384, 32_768, 65_536)
)
UNSEEN = (  # not fitted: what the predictions are checked on
    Shape(3, 2304, 64),
    Shape(4, 3328, 64),
    Shape(6, 4608, 80),
    Shape(2, 7680, 128),
    Shape(8, 5120, 64),
)
UNSEEN_LARGE = (
    Shape(12, 12_288, 64),
    Shape(16, 17_776, 64),
    Shape(12, 32_760, 128),
    Shape(24, 23_040, 128),
    Shape(20, 49_152, 128),
)
SHARES = (0.08, 0.3)
ROUNDS, ROUNDS_LARGE = 5, 3  # a GPU has no neighbours
PLANNING = ("kmeans", "selection")  # sections of a call that a kept plan saves


def methods(share: float) -> tuple[Clustered, ...]:
    """What is measured at a share of the keys."""
    return SVG2(top_p=1e-6, min_key_share=share), SVGEar(density=share)


@dataclass
class SparseCall:
    """Seconds of one sparse call with a warm start, a number a round, and those of them that go into its plan."""

    work: Work
    seconds: list[float] = field(default_factory=list)
    planning: list[float] = field(default_factory=list)


@dataclass
class Size:
    """What was measured at one shape: seconds of dense attention by backend, a number a round, and sparse calls."""

    shape: Shape
    dense: dict[str, list[float]] = field(default_factory=dict)
    sparse: dict[Clustered, SparseCall] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        """The fastest."""
        return min(self.dense, key=lambda name: median(self.dense[name]))

    @property
    def work(self) -> Work:
        return Work(self.shape.heads, self.shape.tokens, self.shape.head_dim)

    def speedup(self, call: SparseCall) -> float:
        """Median over the rounds: both are slowed alike by what else the machine does."""
        dense = self.dense[self.backend]
        return median(d / s for d, s in zip(dense, call.seconds, strict=True))


def measure(shapes: Sequence[Shape], dtype: str, device: str, rounds: int) -> list[Size]:
    """All calls in turn, several times over: what another program slows for a minute is one round of many calls, and
    not all rounds of one.
    """
    sizes = [Size(shape) for shape in shapes]
    with tqdm(total=rounds * len(sizes), desc="rates") as bar:
        for _ in range(rounds):
            for size in sizes:
                add_round(size, clustered(size.shape, torch_dtype(dtype), device), device)
                bar.update()
    return sizes


def add_round(size: Size, tensors: Inputs, device: str) -> None:
    """Each dense attention of the machine, and each method at each share of the keys."""
    heads_first = [x.transpose(1, 2) for x in tensors]
    for name, attend in full_precision(device).items():
        with suppress(RuntimeError):  # has no kernel for this shape or dtype
            took = seconds_now(partial(attend, *heads_first))
            size.dense.setdefault(name, []).append(took)
    layout = TokenLayout(1, 1, size.shape.tokens)
    query, key, value = tensors
    call = AttentionCall(
        query=query,
        key=key,
        value=value,
        scale=size.shape.head_dim**-0.5,
        context=CallContext(num_steps=1),
        layout=layout,
    )
    for share in SHARES:
        for method in methods(share):
            add_sparse(size, method, call)


def add_sparse(size: Size, method: Clustered, call: AttentionCall) -> None:
    """A sparse call as it runs in the middle of a run."""
    state = method.new_state()
    attended = method.attend(call, state, Ops(Timer()))  # the start is not warm
    assert attended is not None
    watch = Timer()
    took = seconds_now(partial(method.attend, call, state, Ops(watch)))
    parts = watch.seconds()
    if method not in size.sparse:
        clusters = method.clusters(call.tokens)
        work = replace(
            size.work,
            density=float(attended.density),
            query_clusters=clusters[0],
            key_clusters=clusters[1],
        )
        size.sparse[method] = SparseCall(work)
    size.sparse[method].seconds.append(took)
    share = sum(parts[name] for name in PLANNING) / sum(parts.values())
    size.sparse[method].planning.append(share * took)


def fit(sizes: Sequence[Size], dtype: str, device: str) -> Rates:
    """Rates from what was measured."""
    works = [size.work for size in sizes]
    took = [median(size.dense[size.backend]) for size in sizes]
    dense = regression([work.dense_terms() for work in works], took)
    errors = {"dense": error([float(np.dot(dense, w.dense_terms())) for w in works], took)}
    sparse = {}
    for name in dict.fromkeys(method.name for size in sizes for method in size.sparse):
        calls = [c for size in sizes for method, c in size.sparse.items() if method.name == name]
        sparse[name] = fit_sparse(calls)
        predicted = [sparse[name].seconds(call.work) for call in calls]
        errors[name] = error(predicted, [median(call.seconds) for call in calls])
    backends = [size.backend for size in sizes]
    return Rates(
        torch.device(device).type,
        dtype,
        max(set(backends), key=backends.count),
        dense,
        sparse,
        errors,
        {**machine(device), "calls": sum(len(size.sparse) + 1 for size in sizes)},
    )


def fit_sparse(calls: Sequence[SparseCall]) -> SparseRates:
    """Rates of one method."""
    planning = [median(call.planning) for call in calls]
    rest = [median(call.seconds) - plan for call, plan in zip(calls, planning, strict=True)]
    return SparseRates(
        regression([call.work.plan_terms() for call in calls], planning),
        regression([call.work.run_terms() for call in calls], rest),
    )


def regression(terms: Sequence[np.ndarray], seconds: Sequence[float]) -> tuple[float, ...]:
    """Seconds per term, none negative, that keep the relative error small."""
    relative = np.array(terms) / np.array(seconds)[:, None]
    scale = relative.max(axis=0) + 1e-30
    model = LinearRegression(positive=True, fit_intercept=False)
    model.fit(relative / scale, np.ones(len(relative)))
    return tuple(map(float, model.coef_ / scale))


def error(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean relative error."""
    return float(np.abs(np.array(predicted) / np.array(measured) - 1).mean())


def bench_rates(dtype: str, device: str) -> Rates:
    """Measure, fit, and check on sizes that were not fitted; what came out is in ``about``."""
    shapes, others, rounds = SHAPES, UNSEEN, ROUNDS
    if device != "cpu":
        shapes, others, rounds = LARGE, UNSEEN_LARGE, ROUNDS_LARGE
    sizes = measure((*shapes, *others), dtype, device, rounds)
    rates = fit(sizes[: len(shapes)], dtype, device)
    unseen = list(compared(rates, sizes[len(shapes) :]))
    return replace(rates, about={**rates.about, "unseen": unseen})


def compared(rates: Rates, sizes: Sequence[Size]) -> Iterator[dict[str, Any]]:
    """Measured and predicted speed-up of every sparse call."""
    for size in sizes:
        for method, call in size.sparse.items():
            measured, predicted = size.speedup(call), rates.speedup(method.name, call.work)
            yield {
                "method": method.name,
                **asdict(call.work),
                "measured": measured,
                "predicted": predicted,
                "deviation": predicted / measured - 1,
            }
