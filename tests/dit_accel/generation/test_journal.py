"""The journals of a batch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dit_accel.generation.journal import Journal


def test_records_are_read_in_the_order_of_their_journals(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    for rank, seconds in ((1, 9.0), (0, 3.0)):
        journal = tmp_path / f"report.{rank}.jsonl"
        journal.write_text(json.dumps({"seconds": seconds}) + "\n")
        os.utime(journal, (0, 1 - rank))
    assert [record["seconds"] for record in Journal(report, 0).records()] == [9.0, 3.0]
