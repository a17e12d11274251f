"""Keep the records of a batch: each process appends to its own journal, and all journals become one report."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_accel.generation.identity import matches
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import append_record, read_records, to_json

Request = tuple[Mapping[str, Any], Path]
"""Everything that decides a render (`identify` returns it), and the file of the render."""


@dataclass(frozen=True)
class Journal:
    """Records of one report, written by several processes.

    Attributes:
        report: the JSON file that all records go to.
        rank: index of this process, which appends to ``report.RANK.jsonl``.
    """

    report: Path
    rank: int

    @property
    def path(self) -> Path:
        """Return the file that this process appends to."""
        return self.report.with_suffix(f".{self.rank}.jsonl")

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record of this process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_record(self.path, record)

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all processes; those of the journal that was written last come last."""
        journals = sorted(
            self.report.parent.glob(f"{glob.escape(self.report.stem)}.*.jsonl"),
            key=lambda path: path.stat().st_mtime_ns,
        )
        records = [record for journal in journals for record in read_records(journal)]
        return [record for record in records if isinstance(record, dict)]

    def merge(self, requests: Sequence[Request]) -> None:
        """Write the report from what all processes have recorded so far, in the order of the requests.

        The report is written again while other processes add records, because the last process to write must have
        read all of them.
        """
        written: list[dict[str, Any]] = []
        while (recorded := self._select(requests)) != written and recorded:
            with atomic_write(self.report) as temporary:
                content = recorded if len(requests) > 1 else recorded[0]
                temporary.write_text(to_json(content, indent=2) + "\n")
            written = recorded
        if len(requests) == 1 and written:
            self.path.unlink(missing_ok=True)

    def _select(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """Return the latest record of each request that has one."""
        records = self.records()
        latest = [find_record(request, records) for request in requests]
        return [record for record in latest if record is not None]


def find_record(request: Request, records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the latest record of a request, or None."""
    identity, path = request
    for record in reversed(records):
        if record.get("output") == str(path) and matches(record, identity):
            return dict(record)
    return None
