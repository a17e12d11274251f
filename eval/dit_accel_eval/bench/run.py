"""Run the benchmarks of ``dit-accel bench``: rows go to a JSONL file, and a later run resumes by shape."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from dit_accel.errors import InvalidSettings
from dit_accel.generation.placement import check_device, torch_dtype, use_device
from dit_accel.io.atomic import check_writable
from dit_accel.io.jsonl import append_record, read_records
from dit_accel_eval.bench.cases import SHAPES
from dit_accel_eval.bench.model import MODELS
from dit_accel_kernels import PRECISIONS, ContractError, Precision, check_precision

Benchmark = Literal["kernels", "layer", "model"]


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a benchmark.

    Attributes:
        benchmark: The timed part: kernels alone, a layer with its planning, or a model's forward.
        shapes: Names in `SHAPES`, or in `MODELS` for the benchmark ``model``.
        precisions: Precisions of sparse calls.
        dtype: dtype of queries, keys and values.
        device: Device to measure on.
        density: Density of a layer's sparse calls, or share of the key clusters in a model.
        query_clusters: Query clusters of a head in a layer; None leaves them to svg-ear.
    """

    benchmark: Benchmark
    shapes: Sequence[str]
    precisions: Sequence[str]
    dtype: str
    device: str
    density: float = 0.25
    query_clusters: int | None = None

    def check(self) -> None:
        """Check the names and numbers, without a device.

        Raises:
            InvalidSettings: for an unknown shape or precision, or a density out of range.
        """
        known: Mapping[str, Any] = MODELS if self.benchmark == "model" else SHAPES
        for name in self.shapes:
            if name not in known:
                raise InvalidSettings(f"unknown shape {name!r}: choose from {', '.join(known)}")
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise InvalidSettings(
                    f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}"
                )
        if not 0 < self.density <= 1:
            raise InvalidSettings(f"density must be in (0, 1], got {self.density}")

    def check_device(self) -> None:
        """Check that the device exists and runs the precisions.

        Raises:
            InvalidSettings: if it does not.
        """
        check_device(self.device)
        for precision in self.precisions:
            try:
                check_precision(precision, torch.device(self.device))
            except ContractError as error:
                raise InvalidSettings(str(error)) from None

    def key(self, shape: str) -> dict[str, Any]:
        """Return the key of the rows of a shape in the file."""
        return {
            "bench": self.benchmark,
            "shape": shape,
            "dtype": self.dtype,
            "precisions": list(self.precisions),
            "density": None if self.benchmark == "kernels" else self.density,
            "query_clusters": self.query_clusters if self.benchmark == "layer" else None,
            **machine(self.device),
        }


def machine(device: str) -> dict[str, Any]:
    """Return the processor or GPU, the number of threads and the versions that rows are measured with."""
    from dit_accel.generation.identity import versions

    name = platform.processor() or platform.machine()
    if device != "cpu":
        name = torch.cuda.get_device_name(device)
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions()}


def run_bench(settings: BenchSettings, out: Path) -> Iterator[dict[str, Any]]:
    """Measure the shapes that are not in a JSONL file yet, and yield the rows of all shapes.

    Raises:
        InvalidSettings: for an unknown shape or precision, a missing device, or a density out of range.
    """
    settings.check()
    check_writable(out)
    settings.check_device()
    use_device(settings.device)
    records = read_records(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for shape in settings.shapes:
        key = settings.key(shape)
        rows = [record for record in records if record["key"] == key]
        if any(row.get("last") for row in rows):
            yield from (row for row in rows if not row.get("last"))
        else:
            yield from measure_shape(settings, shape, key, out)


def measure_shape(
    settings: BenchSettings, shape: str, key: Mapping[str, Any], out: Path
) -> Iterator[dict[str, Any]]:
    """Measure one shape. Append each row and, after the last one, a record with ``last``."""
    from dit_accel_eval.bench.baselines import missing_peers

    for row in measure_rows(settings, shape):
        record = {"key": key, **row, "missing": missing_peers()}
        append_record(out, record)
        yield record
    append_record(out, {"key": key, "last": True})


def measure_rows(settings: BenchSettings, shape: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one shape."""
    from dit_accel_eval.bench.kernels import bench_kernels
    from dit_accel_eval.bench.layer import bench_layer
    from dit_accel_eval.bench.model import bench_model

    dtype, device, density = torch_dtype(settings.dtype), settings.device, settings.density
    precisions = cast(Sequence[Precision], settings.precisions)
    if settings.benchmark == "kernels":
        return bench_kernels(SHAPES[shape], dtype, device, precisions)
    if settings.benchmark == "layer":
        return bench_layer(
            SHAPES[shape],
            dtype,
            device,
            precisions,
            density=density,
            query_clusters=settings.query_clusters,
        )
    return bench_model(MODELS[shape], dtype, device, precisions, density=density)
