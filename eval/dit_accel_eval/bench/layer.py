"""Benchmark a whole svg-ear call of a layer, with its planning, against the fastest dense attention.

The call is what a pipeline runs: k-means from a warm start, grouping, selection, and attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from dit_accel import AttentionCall, Plan, SVGEar
from dit_accel.core.attention_call import CallContext
from dit_accel.core.ops import Ops, heads_first
from dit_accel.core.timer import Timer
from dit_accel_eval.bench.cases import Inputs, Shape, make_inputs
from dit_accel_eval.bench.kernels import Case, fastest_dense_row, measure_dense
from dit_accel_eval.bench.measure import median_seconds, peak_extra_bytes
from dit_accel_eval.bench.peers import flex_map_call
from dit_accel_kernels import Precision
from dit_accel_pipelines import TokenLayout


def bench_layer(
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    precisions: Sequence[Precision],
    *,
    density: float,
    query_clusters: int | None,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each dense attention, for FlexAttention, and for svg-ear in each precision."""
    tensors = make_inputs(shape, dtype, device)
    call = make_attention_call(shape, tensors)
    rows = list(measure_dense(Case(shape, heads_first(call), device)))
    yield from ({"attention": row.pop("kernel"), **row} for row in map(dict, rows))
    dense = fastest_dense_row(rows, device)
    method = SVGEar(density=density, query_clusters=query_clusters)
    for precision in precisions:
        row = measure_call(method, replace(call, precision=precision), device)
        yield {
            "attention": "svg-ear",
            "precision": precision,
            **compare_with_dense(row, dense["milliseconds"]),
            "against": dense["kernel"],
        }
    yield measure_flex(method, call, device)


def measure_flex(method: SVGEar, call: AttentionCall, device: str) -> dict[str, Any]:
    """Return the time of FlexAttention on the pairs that the method selects, without its planning."""
    block_map = method.new_plan(call, method.new_state(), Ops(Timer())).block_map
    attend = flex_map_call(heads_first(call), block_map)
    milliseconds = 1e3 * median_seconds(attend, device)
    return {
        "attention": "FlexAttention, the same pairs",
        "density": float(block_map.density()),
        "attention_milliseconds": milliseconds,
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


def measure_call(method: SVGEar, call: AttentionCall, device: str) -> dict[str, Any]:
    """Return time, memory and density of a sparse call, and the time of its planning.

    A step takes its attention and its share of the plan, which serves `SVGEar.refresh` steps.
    """
    ops, state = Ops(Timer()), method.new_state()
    first_plan: Plan = method.new_plan(call, state, ops)

    def attend() -> torch.Tensor:
        return ops.run(first_plan, call)

    def plan_and_attend() -> torch.Tensor:
        return ops.run(method.new_plan(call, state, ops), call)

    planning = median_seconds(lambda: method.new_plan(call, state, ops), device)
    attention = median_seconds(attend, device)
    query_clusters, key_clusters = method.clusters(call.tokens)
    return {
        "query_clusters": query_clusters,
        "key_clusters": key_clusters,
        "density": float(first_plan.block_map.density()),
        "milliseconds": 1e3 * (attention + planning / method.refresh),
        "attention_milliseconds": 1e3 * attention,
        "planning_milliseconds": 1e3 * planning,
        "extra_bytes": peak_extra_bytes(plan_and_attend, device),
    }


def compare_with_dense(row: dict[str, Any], dense_milliseconds: float) -> dict[str, Any]:
    """Add the speed-up and the efficiency (density x speed-up) to a row."""
    speedup = dense_milliseconds / row["milliseconds"]
    return {**row, "speedup": speedup, "efficiency": row["density"] * speedup}
