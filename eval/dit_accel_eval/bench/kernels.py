"""Dense and sparse attention kernels alone: plans are made before the clock starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dit_accel_eval.bench.baselines import Attention, full_precision, quantized
from dit_accel_eval.bench.cases import Inputs, Shape, clustered, random_map
from dit_accel_eval.bench.measure import error_of, extra_bytes, sampled_rows, seconds
from dit_accel_kernels import BlockMap, ContractError, Precision, sparse_attention
from dit_accel_kernels.contracts import group_of_token

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
    groups = (min(300, shape.tokens // 64), min(1000, shape.tokens // 16))
    for density in DENSITIES:
        for sigma in SIGMAS:
            block_map = random_map(shape, groups, density, sigma, device)
            for precision in precisions:
                yield {
                    "kernel": "dit_accel sparse",
                    "precision": precision,
                    "sigma": sigma,
                    **sparse_row(shape, tensors, block_map, precision, device, dense),
                }


def sparse_row(
    shape: Shape,
    tensors: Inputs,
    block_map: BlockMap,
    precision: Precision,
    device: str,
    dense: float,
) -> dict[str, Any]:
    """Time, efficiency and error of one sparse call. Efficiency is density x dense / sparse."""

    def work() -> Tensor:
        return sparse_attention(*tensors, block_map, precision=precision, return_lse=False)[0]

    took, density = seconds(work, device), float(block_map.density())
    return {
        "density": density,
        "milliseconds": 1e3 * took,
        "tflops": 4 * density * shape.pairs() * shape.head_dim / took / 1e12,
        "efficiency": density * dense / took,
        "error": error_of(work(), *tensors, mask_of_sample(block_map)),
        "extra_bytes": extra_bytes(work, device),
    }


def mask_of_sample(block_map: BlockMap) -> Tensor:
    """Which keys the sampled query rows of the first head may see, bool ``[64, S]``."""
    first = BlockMap(*(x[:1, :1] for x in vars(block_map).values()))
    rows = sampled_rows(first.query_order.shape[-1]).to(first.selected.device)
    query_group = group_of_token(first.query_order, first.query_offsets)[0, 0, rows]
    key_group = group_of_token(first.key_order, first.key_offsets)[0, 0]
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
    yield from sparse_rows(shape, tensors, device, precisions, seconds_of_dense)
