"""Benchmark dense and sparse attention kernels alone, without the time to plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dit_accel import SVG2
from dit_accel.errors import first_line
from dit_accel_eval.bench.baselines import Attention, full_precision_baselines, quantized_baselines
from dit_accel_eval.bench.cases import Inputs, Shape, draw_block_map, make_inputs
from dit_accel_eval.bench.measure import (
    median_seconds,
    peak_extra_bytes,
    sample_rows,
    sampled_error,
)
from dit_accel_eval.bench.peers import (
    draw_uniform_blocks,
    flashinfer_call,
    flex_call,
    kmeans_calls,
)
from dit_accel_kernels import BlockMap, ContractError, Precision, sparse_attention
from dit_accel_kernels.contracts import label_tokens
from dit_accel_kernels.kmeans import strided_centroids

DENSITIES = (0.1, 0.25, 0.5)
SIGMAS = (0.5, 0.9)


class Case(NamedTuple):
    """The inputs that all kernels of one benchmark get.

    Attributes:
        shape: Size of the call.
        tensors: Query, key and value ``[B, H, S, D]``.
        device: Device of the tensors.
    """

    shape: Shape
    tensors: Inputs
    device: str


class Reference(NamedTuple):
    """The reference of a sparse call.

    Attributes:
        density: Share of the (query, key) pairs that the call computes.
        mask: bool ``[64, S]``, the keys that the sampled query rows may see.
        seconds: Time of the fastest dense attention in full precision.
    """

    density: float
    mask: Tensor
    seconds: float


def bench_kernels(
    shape: Shape, dtype: torch.dtype, device: str, precisions: Sequence[Precision]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each dense attention, each k-means and each sparse attention at one shape."""
    query, key, value = make_inputs(shape, dtype, device)
    tensors = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    case = Case(shape, tensors, device)
    dense = list(measure_dense(case))
    yield from dense
    dense_seconds = fastest_dense_row(dense, device)["milliseconds"] / 1e3
    yield from measure_kmeans(case)
    yield from measure_sparse(case, precisions, dense_seconds)


def measure_dense(case: Case) -> Iterator[dict[str, Any]]:
    """Yield a row for each dense attention of this machine."""
    shape, tensors, device = case
    baselines: dict[str, Attention] = {
        **full_precision_baselines(device),
        **quantized_baselines(device),
    }
    for name, attend in baselines.items():
        call = partial(attend, *tensors)
        try:
            seconds = median_seconds(call, device)
        # A kernel may refuse the shape or the dtype.
        except (RuntimeError, ContractError) as refusal:
            yield {"kernel": name, "refused": first_line(refusal)}
            continue
        yield {
            "kernel": name,
            "milliseconds": 1e3 * seconds,
            "tflops": 4 * shape.pairs() * shape.head_dim / seconds / 1e12,
            "error": sampled_error(call(), *tensors, None),
            "extra_bytes": peak_extra_bytes(call, device),
        }


def fastest_dense_row(rows: Sequence[Mapping[str, Any]], device: str) -> Mapping[str, Any]:
    """Return the row of the fastest dense attention in full precision."""
    known = full_precision_baselines(device)
    return min(
        (row for row in rows if row["kernel"] in known and "milliseconds" in row),
        key=lambda row: float(row["milliseconds"]),
    )


def measure_kmeans(case: Case) -> Iterator[dict[str, Any]]:
    """Yield a row for each k-means implementation: one round over the keys."""
    key, clusters = case.tensors[1], SVG2().clusters(case.shape.tokens)[1]
    for name, call in kmeans_calls(key, strided_centroids(key, clusters)).items():
        yield {
            "kernel": name,
            "clusters": clusters,
            "milliseconds": 1e3 * median_seconds(call, case.device),
            "extra_bytes": peak_extra_bytes(call, case.device),
        }


def measure_sparse(
    case: Case, precisions: Sequence[Precision], dense_seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield rows for each density: FlexAttention on uniform blocks, then flashinfer and ours on clusters.

    Args:
        precisions: precisions of our kernel.
        dense_seconds: time of the fastest dense attention in full precision.
    """
    for density in DENSITIES:
        blocks = draw_uniform_blocks(case.shape, density, case.device)
        rows = sample_rows(case.shape.tokens).to(case.device)
        mask = blocks.visible_keys(rows, case.shape.tokens)
        reference = Reference(blocks.density(), mask, dense_seconds)
        row = measure_sparse_call(case, flex_call(case.tensors, blocks), reference)
        yield {"kernel": "FlexAttention, uniform blocks", **row}
        for sigma in SIGMAS:
            yield from measure_clusters(case, density, sigma, precisions, dense_seconds)


def measure_clusters(
    case: Case, density: float, sigma: float, precisions: Sequence[Precision], dense_seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield rows for flashinfer and for our kernel in each precision on clusters of uneven size."""
    groups = SVG2().clusters(case.shape.tokens)
    block_map = draw_block_map(case.shape, groups, density, sigma, case.device)
    reference = Reference(float(block_map.density()), sampled_mask(block_map), dense_seconds)
    call = flashinfer_call(case.tensors, block_map)
    if call is not None:
        row = measure_sparse_call(case, call, reference)
        yield {"kernel": "flashinfer with its plan", "sigma": sigma, **row}

    def attend(precision: Precision) -> Tensor:
        return sparse_attention(*case.tensors, block_map, precision=precision, return_lse=False)[0]

    for precision in precisions:
        row = measure_sparse_call(case, partial(attend, precision), reference)
        yield {"kernel": "dit_accel sparse", "precision": precision, "sigma": sigma, **row}


def measure_sparse_call(
    case: Case, call: Callable[[], Tensor], reference: Reference
) -> dict[str, Any]:
    """Return time, efficiency and error of one sparse call, or why the kernel refused it.

    Efficiency is density x dense time / sparse time: 1 means that skipped pairs cost nothing.
    """
    shape, tensors, device = case
    density = reference.density
    try:
        seconds = median_seconds(call, device)
    # Kernels of other packages refuse a shape, a dtype or a machine with errors of any class.
    except Exception as refusal:
        return {"density": density, "refused": f"{type(refusal).__name__}: {refusal}"[:200]}
    return {
        "density": density,
        "milliseconds": 1e3 * seconds,
        "tflops": 4 * density * shape.pairs() * shape.head_dim / seconds / 1e12,
        "efficiency": density * reference.seconds / seconds,
        "error": sampled_error(call(), *tensors, reference.mask),
        "extra_bytes": peak_extra_bytes(call, device),
    }


def sampled_mask(block_map: BlockMap) -> Tensor:
    """Return the keys that the sampled query rows of the first head may see, bool ``[64, S]``."""
    first = BlockMap(*(x[:1, :1] for x in vars(block_map).values()))
    rows = sample_rows(first.query_order.shape[-1]).to(first.selected.device)
    query_group = label_tokens(first.query_order, first.query_offsets)[0, 0, rows]
    key_group = label_tokens(first.key_order, first.key_offsets)[0, 0]
    return first.selected[0, 0][query_group][:, key_group]
