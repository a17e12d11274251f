"""Measurements on disk: strict JSON (infinite values as text, NaN as null), appended line by line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_accel.io.atomic import atomic_write


def to_json(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON that every reader takes."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line to a JSONL file; a last line that was cut off stays alone."""
    cut_off = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
    with path.open("a") as file:
        file.write(("\n" if cut_off else "") + to_json(record) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file, without lines that were cut off; empty where there is no file."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def log_of(path: Path, rank: int) -> Path:
    """Where a process appends: the first one to ``path``, the others beside it (``name.1.jsonl``, ...)."""
    return path if rank == 0 else path.with_name(f"{path.stem}.{rank}{path.suffix}")


def read_logs(path: Path) -> list[dict[str, Any]]:
    """The records of all processes."""
    beside = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))
    return [record for log in [path, *beside] for record in read_records(log)]


def _finite(value: Any) -> Any:
    if hasattr(value, "_asdict"):  # a NamedTuple keeps its names
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a value as an indented JSON file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(to_json(value, indent=2) + "\n")
