"""Read prompts from a file (one per line, CSV or JSON Lines) or from a bundled set."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from dit_accel.errors import InvalidSettings
from dit_accel_assets import prompt_sets

COLUMN = "prompt"


def read_prompts(source: str | Path) -> list[str]:
    """Return the prompts of a file or of a bundled set.

    Args:
        source: a file, or the name of a set. ``.csv`` has a column ``prompt``, or a single column.
            ``.jsonl`` has texts, or objects with a key ``prompt``. Every other file has one prompt
            per line; lines that begin with ``#`` are comments.

    Raises:
        InvalidSettings: if the file or set is missing, holds no prompt, or has an invalid line.
    """
    path = Path(source)
    sets = prompt_sets()
    if not path.exists() and str(source) in sets:
        path = sets[str(source)]
    try:
        # Spreadsheet programs write a byte order mark first; "utf-8-sig" drops it.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(
            f"cannot read prompts from {source}: {error}; give a file, or a set: {', '.join(sets)}"
        ) from None
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    rows = readers.get(path.suffix, _read_lines)(text, path)
    prompts = [" ".join(prompt.split()) for prompt in rows if prompt.strip()]
    if not prompts:
        raise InvalidSettings(f"no prompts in {path}: give at least one")
    return prompts


def _read_lines(text: str, path: Path) -> list[str]:
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def _read_csv(text: str, path: Path) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InvalidSettings(f"{path}: {error}") from None
    if not rows:
        return []
    header = [name.strip().lower() for name in rows[0]]
    if COLUMN not in header and len(header) > 1:
        raise InvalidSettings(
            f"{path} has no column {COLUMN!r}: its columns are {', '.join(rows[0])}"
        )
    column = header.index(COLUMN) if COLUMN in header else 0
    rows = rows[1:] if COLUMN in header else rows
    for number, row in enumerate(rows, 2):
        if row and len(row) <= column:
            raise InvalidSettings(f"{path}, line {number}: no {COLUMN}")
    return [row[column] for row in rows if row]


def _read_jsonl(text: str, path: Path) -> list[str]:
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            raise InvalidSettings(f"{path}, line {number}: not JSON") from None
        prompt = value.get(COLUMN) if isinstance(value, dict) else value
        if not isinstance(prompt, str):
            raise InvalidSettings(
                f"{path}, line {number}: give a text, or an object with {COLUMN!r}"
            )
        prompts.append(prompt)
    return prompts
