"""Dense and sparse attention kernels alone: plans are made before the clock starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dit_accel import SVG2
from dit_accel_eval.bench.baselines import Attention, full_precision, quantized
from dit_accel_eval.bench.cases import Inputs, Shape, clustered, random_map
from dit_accel_eval.bench.measure import error_of, extra_bytes, sampled_rows, seconds
from dit_accel_eval.bench.peers import flashinfer, flex, kmeans_rounds, uniform_blocks
from dit_accel_kernels import BlockMap, ContractError, Precision, sparse_attention
from dit_accel_kernels.contracts import label_tokens
from dit_accel_kernels.kmeans import strided_centroids

DENSITIES = (0.1, 0.25, 0.5)
SIGMAS = (0.5, 0.9)


def dense_rows(shape: Shape, tensors: Inputs, device: str) -> Iterator[dict[str, Any]]:
    """One row for each dense attention of this machine."""
    candidates: dict[str, Attention] = {**full_precision(device), **quantized(device)}
    for name, attend in candidates.items():
        try:
            took = seconds(partial(attend, *tensors), device)
        except (RuntimeError, ContractError) as refusal:  # of this shape or dtype
            yield {"kernel": name, "refused": str(refusal).splitlines()[0]}
            continue
        yield {
            "kernel": name,
            "milliseconds": 1e3 * took,
            "tflops": 4 * shape.pairs() * shape.head_dim / took / 1e12,
            "error": error_of(attend(*tensors), *tensors, None),
            "extra_bytes": extra_bytes(partial(attend, *tensors), device),
        }


def sparse_rows(
    shape: Shape,
    tensors: Inputs,
    device: str,
    precisions: tuple[Precision, ...],
    dense: float,
) -> Iterator[dict[str, Any]]:
    """One row for each density, spread of cluster sizes and precision; ``dense``: seconds of the fastest
    full-precision dense attention.
    """

    def ours(block_map: BlockMap, precision: Precision) -> Tensor:
        return sparse_attention(*tensors, block_map, precision=precision, return_lse=False)[0]

    for density in DENSITIES:
        blocks = uniform_blocks(shape, density, device)
        rows = sampled_rows(shape.tokens).to(device)
        masked = blocks.density(), blocks.mask_of(rows, shape.tokens), dense
        yield {
            "kernel": "FlexAttention, uniform blocks",
            **sparse_row(shape, tensors, flex(tensors, blocks), masked, device),
        }
        for sigma in SIGMAS:
            block_map = random_map(shape, SVG2().clusters(shape.tokens), density, sigma, device)
            masked = float(block_map.density()), mask_of_sample(block_map), dense
            theirs = flashinfer(tensors, block_map)
            if theirs is not None:
                row = sparse_row(shape, tensors, theirs, masked, device)
                yield {"kernel": "flashinfer with its plan", "sigma": sigma, **row}
            for precision in precisions:
                yield {
                    "kernel": "dit_accel sparse",
                    "precision": precision,
                    "sigma": sigma,
                    **sparse_row(
                        shape, tensors, partial(ours, block_map, precision), masked, device
                    ),
                }


def kmeans_rows(shape: Shape, key: Tensor, device: str) -> Iterator[dict[str, Any]]:
    """One round of k-means over the keys."""
    clusters = SVG2().clusters(shape.tokens)[1]
    for name, work in kmeans_rounds(key, strided_centroids(key, clusters)).items():
        yield {
            "kernel": name,
            "clusters": clusters,
            "milliseconds": 1e3 * seconds(work, device),
            "extra_bytes": extra_bytes(work, device),
        }


def sparse_row(
    shape: Shape,
    tensors: Inputs,
    work: Callable[[], Tensor],
    masked: tuple[float, Tensor, float],
    device: str,
) -> dict[str, Any]:
    """Time, efficiency and error of one sparse call; ``masked``: its density, what the sampled rows see,
    and seconds of dense attention. Efficiency is density x dense / sparse. What refuses is named.
    """
    density, mask, dense = masked
    try:
        took = seconds(work, device)
    except Exception as refusal:  # others' kernels refuse a shape, a dtype, a machine as they like
        return {"density": density, "refused": f"{type(refusal).__name__}: {refusal}"[:200]}
    return {
        "density": density,
        "milliseconds": 1e3 * took,
        "tflops": 4 * density * shape.pairs() * shape.head_dim / took / 1e12,
        "efficiency": density * dense / took,
        "error": error_of(work(), *tensors, mask),
        "extra_bytes": extra_bytes(work, device),
    }


def mask_of_sample(block_map: BlockMap) -> Tensor:
    """Which keys the sampled query rows of the first head may see, bool ``[64, S]``."""
    first = BlockMap(*(x[:1, :1] for x in vars(block_map).values()))
    rows = sampled_rows(first.query_order.shape[-1]).to(first.selected.device)
    query_group = label_tokens(first.query_order, first.query_offsets)[0, 0, rows]
    key_group = label_tokens(first.key_order, first.key_offsets)[0, 0]
    return first.selected[0, 0][query_group][:, key_group]


def fastest(rows: Sequence[Mapping[str, Any]], device: str) -> Mapping[str, Any]:
    """The row of the fastest full-precision dense attention."""
    known = full_precision(device)
    return min(
        (r for r in rows if r["kernel"] in known and "milliseconds" in r),
        key=lambda row: float(row["milliseconds"]),
    )


def bench_kernels(
    shape: Shape, dtype: torch.dtype, device: str, precisions: tuple[Precision, ...]
) -> Iterator[dict[str, Any]]:
    """Rows for one shape: dense ones, then sparse ones against the fastest full-precision dense."""
    query, key, value = clustered(shape, dtype, device)
    tensors = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    dense = list(dense_rows(shape, tensors, device))
    yield from dense
    seconds_of_dense = fastest(dense, device)["milliseconds"] / 1e3
    yield from kmeans_rows(shape, tensors[1], device)
    yield from sparse_rows(shape, tensors, device, precisions, seconds_of_dense)
