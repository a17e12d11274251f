"""A whole sparse attention call as a pipeline makes it: k-means from a warm start, grouping, selection,
attention; against the fastest dense attention of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from dit_accel import SVG2, AttentionCall, Plan
from dit_accel.core.attention_call import CallContext
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_eval.bench.cases import Shape, clustered
from dit_accel_eval.bench.kernels import dense_rows, fastest
from dit_accel_eval.bench.measure import extra_bytes, seconds
from dit_accel_kernels import Precision
from dit_accel_pipelines import TokenLayout


def bench_layer(
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    precisions: tuple[Precision, ...],
    density: float,
    query_clusters: int | None,
) -> Iterator[dict[str, Any]]:
    """Rows for one shape: each dense attention, then the sparse call with its parts."""
    tensors = clustered(shape, dtype, device)
    query, key, value = tensors
    heads_first = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    rows = list(dense_rows(shape, heads_first, device))
    yield from ({"attention": row.pop("kernel"), **row} for row in map(dict, rows))
    dense = fastest(rows, device)
    layout = TokenLayout(1, 1, shape.tokens)
    call = AttentionCall(
        query=query,
        key=key,
        value=value,
        scale=shape.head_dim**-0.5,
        context=CallContext(num_steps=1),
        layout=layout,
    )
    method = of_density(SVG2(query_clusters=query_clusters, top_p=1e-6), call, density)
    for precision in precisions:
        yield {
            "attention": "svg2",
            "precision": precision,
            **sparse_call(method, call, precision, device, dense["milliseconds"] / 1e3),
            "against": dense["kernel"],
        }


def of_density(method: SVG2, call: AttentionCall, density: float) -> SVG2:
    """The method with the share of key clusters that gives the density: large clusters come first, so
    a share of the clusters holds a larger share of the keys.
    """
    low, high, state, ops = 0.0, 1.0, method.new_state(), Ops(Timer())
    for _ in range(10):
        share = (low + high) / 2
        tried = replace(method, min_key_share=share)
        plan = tried.new_plan(call, state, ops)
        low, high = (low, share) if plan.block_map.density() > density else (share, high)
    return replace(method, min_key_share=low)


def sparse_call(
    method: SVG2, call: AttentionCall, precision: Precision, device: str, dense: float
) -> dict[str, Any]:
    """Seconds of the whole call and of its planning, and its speed-up over dense."""
    ops = Ops(Timer())
    state, call = method.new_state(), replace(call, precision=precision)
    plan: Plan = method.new_plan(call, state, ops)

    def planning() -> Plan:
        return method.new_plan(call, state, ops)

    def whole() -> torch.Tensor:
        return ops.run(planning(), call)

    took, planned = seconds(whole, device), seconds(planning, device)
    queries, keys = method.clusters(call.tokens)
    density = float(plan.block_map.density())
    return {
        "query_clusters": queries,
        "key_clusters": keys,
        "density": density,
        "milliseconds": 1e3 * took,
        "planning_milliseconds": 1e3 * planned,
        "planning_share": planned / took,
        "speedup": dense / took,
        "efficiency": density * dense / took,
        "extra_bytes": extra_bytes(whole, device),
    }
