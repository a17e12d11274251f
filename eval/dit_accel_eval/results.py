"""Results of an evaluation in its folder, from which its tables, plot and page are made.

``evaluation.json`` holds what was asked for, and ``results.jsonl`` what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dit_accel.errors import InvalidSettings, first_line
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.jsonl import read_logs, write_json
from dit_accel.io.reading import MEBIBYTE, read_json
from dit_accel_eval.dense import DenseBackend
from dit_accel_eval.paired_runner import Record

PLAN, LOG = "evaluation.json", "results.jsonl"
# A plan names every clip of every setting.
LARGEST_RESULTS = 256 * MEBIBYTE


@dataclass(frozen=True)
class Plan:
    """Request of an evaluation, with the keys of its records.

    Attributes:
        request: Request of its first clip.
        weights: Digest of the weights.
        dense: Dense attention that speed-ups are ratios to.
        machine: Machine and versions.
        clips: Key and label of each clip's setting, in the order of the tables.
        stability: Name of the file with the agreement of clusters.
    """

    request: RenderSettings
    weights: str
    dense: DenseBackend
    machine: Mapping[str, Any]
    clips: Sequence[tuple[str, str]]
    stability: str

    def save(self, out: Path) -> None:
        """Write the plan to a folder."""
        write_json(out / PLAN, asdict(self))

    @classmethod
    def load(cls, out: Path) -> Plan:
        """Read the plan of a folder.

        Raises:
            InvalidSettings: for a folder without an evaluation.
        """
        try:
            values = read_json(out / PLAN, "evaluation", largest=LARGEST_RESULTS)
            values["request"] = RenderSettings.from_dict(values["request"])
            values["dense"] = DenseBackend(**values["dense"])
            return cls(**values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InvalidSettings(
                f"{out} holds no evaluation ({first_line(error)}): give the --out of an earlier `dit-accel eval`"
            ) from None


@dataclass(frozen=True)
class Results:
    """Records that an evaluation has measured so far.

    Attributes:
        records: A record for each measured clip of each setting.
        clusters: Agreement of clusters in the first clip.
        missing: Number of clips that are not measured yet.
    """

    plan: Plan
    records: Sequence[Record]
    clusters: Sequence[Record]
    missing: int = 0

    @property
    def clips(self) -> int:
        """Number of different clips."""
        return len({(r["prompt"], r["seed"]) for r in self.records})


def read_results(out: Path) -> Results:
    """Return the results in the folder of an evaluation.

    Raises:
        InvalidSettings: if nothing was measured.
    """
    plan = Plan.load(out)
    measured = {record.get("key"): record for record in read_logs(out / LOG)}
    records = [{**measured[key], "setting": s} for key, s in plan.clips if key in measured]
    if not records:
        raise InvalidSettings(
            f"{out} holds no measured clip: run the same `dit-accel eval` to its end"
        )
    clusters = read_rows(out / plan.stability) or []
    return Results(plan, records, clusters, len(plan.clips) - len(records))


def read_rows(path: Path) -> list[Record] | None:
    """Return the rows of a JSON file, or None for a missing or damaged file."""
    try:
        rows = read_json(path, "rows", largest=LARGEST_RESULTS)
    except InvalidSettings:
        return None
    is_rows = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    return rows if is_rows else None
