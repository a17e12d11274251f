"""The rates of a machine: attention calls of many sizes, and a regression of their seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LinearRegression
from tqdm import tqdm

from dit_accel import SVG2, AttentionCall, SVGEar
from dit_accel.cost import Rates, Work
from dit_accel.methods.clustered import Clustered
from dit_accel.ops import Ops
from dit_accel.placing import DTYPES
from dit_accel.stopwatch import Stopwatch
from dit_accel_eval.bench.cases import Shape, clustered
from dit_accel_eval.bench.kernels import dense_rows, fastest
from dit_accel_eval.bench.measure import seconds
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


def methods(share: float) -> tuple[Clustered, ...]:
    """What is measured at a share of the keys."""
    return SVG2(top_p=1e-6, min_key_share=share), SVGEar(density=share)


def measure(shapes: Sequence[Shape], dtype: str, device: str) -> Iterator[dict[str, Any]]:
    """Seconds of dense attention, the fastest of the machine, and of sparse calls with a warm start."""
    for shape in tqdm(shapes, desc="rates"):
        tensors = clustered(shape, DTYPES[dtype], device)
        query, key, value = tensors
        heads_first = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        dense = fastest(list(dense_rows(shape, heads_first, device)), device)
        yield {
            "what": "dense",
            "backend": dense["kernel"],
            "seconds": dense["milliseconds"] / 1e3,
            "work": asdict(Work(shape.heads, shape.tokens, shape.head_dim)),
        }
        layout = TokenLayout(1, 1, shape.tokens)
        call = AttentionCall(*tensors, shape.head_dim**-0.5, 0, 1, 0, 1, "cond", layout)
        for share in SHARES:
            for method in methods(share):
                yield {"what": method.name, **sparse_row(method, call, shape, device)}


def sparse_row(method: Clustered, call: AttentionCall, shape: Shape, device: str) -> dict[str, Any]:
    """A sparse call as it runs in the middle of a run."""
    ops, state = Ops(Stopwatch()), method.new_state()
    attended = method.attend(call, state, ops)  # the start is not warm
    assert attended is not None
    density = float(attended.density)
    work = Work(shape.heads, shape.tokens, shape.head_dim, density, *method.clusters(shape.tokens))
    took = seconds(lambda: method.attend(call, state, ops), device)
    return {"seconds": took, "work": asdict(work)}


def fit(rows: Sequence[dict[str, Any]], dtype: str, device: str) -> Rates:
    """Rates from measured rows."""
    dense, error = regression([r for r in rows if r["what"] == "dense"], "dense_terms")
    sparse, errors = {}, {"dense": error}
    for name in dict.fromkeys(r["what"] for r in rows if r["what"] != "dense"):
        own = [r for r in rows if r["what"] == name]
        sparse[name], errors[name] = regression(own, "sparse_terms")
    backends = [r["backend"] for r in rows if r["what"] == "dense"]
    return Rates(
        torch.device(device).type,
        dtype,
        max(set(backends), key=backends.count),
        dense,
        sparse,
        errors,
        {**machine(device), "calls": len(rows)},
    )


def regression(rows: Sequence[dict[str, Any]], terms: str) -> tuple[tuple[float, ...], float]:
    """Seconds per term, none negative, that keep the relative error small; and its mean."""
    given = np.array([getattr(Work(**row["work"]), terms)() for row in rows])
    took = np.array([row["seconds"] for row in rows])
    relative = given / took[:, None]
    scale = relative.max(axis=0) + 1e-30
    model = LinearRegression(positive=True, fit_intercept=False)
    model.fit(relative / scale, np.ones(len(took)))
    rates = model.coef_ / scale
    return tuple(map(float, rates)), float(np.abs(given @ rates / took - 1).mean())


def bench_rates(dtype: str, device: str) -> Rates:
    """Measure, fit, and check on sizes that were not fitted; what came out is in ``about``."""
    shapes, others = (SHAPES, UNSEEN) if device == "cpu" else (LARGE, UNSEEN_LARGE)
    rates = fit(list(measure(shapes, dtype, device)), dtype, device)
    unseen = list(compared(rates, list(measure(others, dtype, device))))
    return replace(rates, about={**rates.about, "unseen": unseen})


def compared(rates: Rates, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Measured and predicted speed-up of every sparse call."""
    dense = 0.0
    for row in rows:
        if row["what"] == "dense":
            dense = row["seconds"]
            continue
        work = Work(**row["work"])
        measured, predicted = dense / row["seconds"], rates.speedup(row["what"], work)
        yield {
            "method": row["what"],
            **asdict(work),
            "measured": measured,
            "predicted": predicted,
            "deviation": predicted / measured - 1,
        }
