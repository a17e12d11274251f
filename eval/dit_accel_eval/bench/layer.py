"""Benchmark a whole sparse attention call of a layer, with its planning, against the fastest dense attention.

The call is what a pipeline runs: k-means from a warm start, grouping, selection and attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from dit_accel import SVG2, AttentionCall, Plan
from dit_accel.core.attention_call import CallContext
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_eval.bench.cases import Inputs, Shape, make_inputs
from dit_accel_eval.bench.kernels import Case, fastest_dense_row, measure_dense
from dit_accel_eval.bench.measure import median_seconds, peak_extra_bytes
from dit_accel_kernels import Precision
from dit_accel_pipelines import TokenLayout

DENSITY_STEPS = 10


def bench_layer(
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    precisions: Sequence[Precision],
    *,
    density: float,
    query_clusters: int | None,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each dense attention at one shape, then one for svg2 in each precision."""
    tensors = make_inputs(shape, dtype, device)
    query, key, value = tensors
    heads_first = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    rows = list(measure_dense(Case(shape, heads_first, device)))
    yield from ({"attention": row.pop("kernel"), **row} for row in map(dict, rows))
    dense = fastest_dense_row(rows, device)
    call = make_attention_call(shape, tensors)
    method = fit_density(SVG2(query_clusters=query_clusters, top_p=1e-6), call, density)
    for precision in precisions:
        row = measure_call(method, replace(call, precision=precision), device)
        yield {
            "attention": "svg2",
            "precision": precision,
            **compare_with_dense(row, dense["milliseconds"]),
            "against": dense["kernel"],
        }


def make_attention_call(shape: Shape, tensors: Inputs) -> AttentionCall:
    """Return an attention call of a one-layer model on query, key and value ``[1, S, H, D]``."""
    query, key, value = tensors
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        scale=shape.head_dim**-0.5,
        context=CallContext(num_steps=1),
        layout=TokenLayout(1, 1, shape.tokens),
    )


def fit_density(method: SVG2, call: AttentionCall, density: float) -> SVG2:
    """Return the method with the share of key clusters that gives a density.

    The share is smaller than the density, because large clusters are selected first.
    """
    low, high, state, ops = 0.0, 1.0, method.new_state(), Ops(Timer())
    for _ in range(DENSITY_STEPS):
        share = (low + high) / 2
        plan = replace(method, min_key_share=share).new_plan(call, state, ops)
        low, high = (low, share) if plan.block_map.density() > density else (share, high)
    return replace(method, min_key_share=low)


def measure_call(method: SVG2, call: AttentionCall, device: str) -> dict[str, Any]:
    """Return time, memory and density of a whole sparse call, and the time of its planning."""
    ops, state = Ops(Timer()), method.new_state()
    first_plan: Plan = method.new_plan(call, state, ops)

    def plan() -> Plan:
        return method.new_plan(call, state, ops)

    def attend() -> torch.Tensor:
        return ops.run(plan(), call)

    seconds, planning = median_seconds(attend, device), median_seconds(plan, device)
    query_clusters, key_clusters = method.clusters(call.tokens)
    return {
        "query_clusters": query_clusters,
        "key_clusters": key_clusters,
        "density": float(first_plan.block_map.density()),
        "milliseconds": 1e3 * seconds,
        "planning_milliseconds": 1e3 * planning,
        "planning_share": planning / seconds,
        "extra_bytes": peak_extra_bytes(attend, device),
    }


def compare_with_dense(row: dict[str, Any], dense_milliseconds: float) -> dict[str, Any]:
    """Add the speed-up and the efficiency (density x speed-up) to a row."""
    speedup = dense_milliseconds / row["milliseconds"]
    return {**row, "speedup": speedup, "efficiency": row["density"] * speedup}
