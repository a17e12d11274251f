"""What `dit-accel bench` does: one line of JSON per row, resumable by shape, and a table."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from dit_accel.errors import InvalidSettings
from dit_accel.generation.placement import check_device, torch_dtype, use_device
from dit_accel.generation.render import versions
from dit_accel.io.jsonl import append_record, read_records
from dit_accel_eval.bench.baselines import missing
from dit_accel_eval.bench.cases import SHAPES
from dit_accel_eval.bench.kernels import bench_kernels
from dit_accel_eval.bench.layer import bench_layer
from dit_accel_eval.bench.model import MODELS, bench_model
from dit_accel_kernels import ContractError, Precision, check_precision


def machine(device: str) -> dict[str, Any]:
    """Where rows were measured."""
    name = platform.processor() or platform.machine()
    if device != "cpu":
        name = torch.cuda.get_device_name(device)
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions()}


def run_bench(
    what: str,
    shapes: Sequence[str],
    precisions: Sequence[str],
    dtype: str,
    device: str,
    density: float,
    query_clusters: int | None,
    out: Path,
) -> Iterator[dict[str, Any]]:
    """Measure what is not in ``out`` yet; yields every row, with the key that it is kept under.

    Raises:
        InvalidSettings: for a shape, precision, device or density that there is not.
    """
    check_device(device)
    known = MODELS if what == "model" else SHAPES
    for name in shapes:
        if name not in known:
            raise InvalidSettings(f"unknown shape {name!r}: choose from {', '.join(known)}")
    if not 0 < density <= 1:
        raise InvalidSettings(f"density must be in (0, 1], got {density}")
    for precision in precisions:
        try:
            check_precision(precision, torch.device(device))
        except ContractError as error:
            raise InvalidSettings(str(error)) from None
    use_device(device)
    kept = read_records(out)
    for name in shapes:
        key = {
            "bench": what,
            "shape": name,
            "dtype": dtype,
            "precisions": list(precisions),
            "density": None if what == "kernels" else density,
            "query_clusters": query_clusters if what == "layer" else None,
            **machine(device),
        }
        rows = [r for r in kept if r["key"] == key]
        if any(r.get("last") for r in rows):
            yield from (r for r in rows if not r.get("last"))
            continue
        settings = (torch_dtype(dtype), device, cast(tuple[Precision, ...], tuple(precisions)))
        if what == "kernels":
            measured = bench_kernels(SHAPES[name], *settings)
        elif what == "layer":
            measured = bench_layer(SHAPES[name], *settings, density, query_clusters)
        else:
            measured = bench_model(MODELS[name], *settings, density)
        for row in measured:
            record = {"key": key, **row, "missing": missing()}
            append_record(out, record)
            yield record
        append_record(out, {"key": key, "last": True})
