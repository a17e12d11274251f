"""Read and write measurements as JSON Lines, one record a line.

The JSON is strict: an infinite number is the text ``"inf"`` or ``"-inf"``, NaN is null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dit_accel.io.atomic import atomic_write
from dit_accel.io.reading import check_regular_file, parse_json


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as strict JSON."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record to a file; start a new line if the last one was cut off."""
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        cut_off = size > 0 and file.read() != b"\n"
        file.write((("\n" if cut_off else "") + to_json(record) + "\n").encode())


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without lines that were cut off; empty if the file is missing.

    Raises:
        InvalidSettings: for a folder, pipe or device.
    """
    if not path.exists():
        return []
    check_regular_file(path, "records")
    records = []
    with path.open("rb") as file:  # a text file would also be split at other separators
        for line in file:
            with suppress(ValueError):
                records.append(_read_record(line))
    return records


def _read_record(line: bytes) -> dict[str, Any]:
    record = parse_json(line.decode())
    if not isinstance(record, dict):
        raise ValueError("not a record")
    return record


def log_path(path: Path, rank: int) -> Path:
    """Return the file that a process appends to: ``name.jsonl`` for rank 0, ``name.1.jsonl`` for rank 1."""
    return path if rank == 0 else path.with_name(f"{path.stem}.{rank}{path.suffix}")


def read_logs(path: Path) -> list[dict[str, Any]]:
    """Return the records that all processes appended."""
    other_ranks = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))
    return [record for log in [path, *other_ranks] for record in read_records(log)]


def _finite(value: Any) -> Any:
    """Return a value with text or None for numbers that strict JSON does not have."""
    # A NamedTuple keeps its field names.
    if hasattr(value, "_asdict"):
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
