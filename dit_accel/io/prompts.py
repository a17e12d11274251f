"""Read prompts from a file (one per line, CSV, JSON or JSON Lines) or from a bundled set."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dit_accel.errors import InvalidSettings
from dit_accel.io.reading import MEBIBYTE, parse_json, read_text
from dit_accel_assets import prompt_sets

COLUMN = "prompt"
LARGEST_FILE = 64 * MEBIBYTE
# Lines of these files are not prompts.
OTHER_FORMATS = (".yaml", ".yml", ".toml", ".xml", ".html", ".ini", ".ipynb")


def read_prompts(source: str | Path) -> list[str]:
    """Return the prompts of a file or of a bundled set.

    Args:
        source: a file, or the name of a set. ``.csv`` and ``.tsv`` have a column ``prompt``, or a single column.
            ``.json`` has a list, and ``.jsonl`` has lines, of texts or of objects with a key ``prompt``. Other files
            have one prompt per line; lines that begin with ``#`` are comments.

    Raises:
        InvalidSettings: if the file or set is missing, holds no prompt, or has an invalid line.
    """
    path, sets = Path(source), prompt_sets()
    if not path.exists():
        if str(source) not in sets:
            raise InvalidSettings(
                f"cannot read prompts from {source}: no such file; give a file, or a set: {', '.join(sets)}"
            )
        path = sets[str(source)]
    suffix = path.suffix.lower()
    if suffix in OTHER_FORMATS:
        raise InvalidSettings(
            f"prompts {path}: {suffix} is not accepted; give one prompt per line, or .csv, .tsv, .json or .jsonl"
        )
    rows = _READERS.get(suffix, _read_lines)(read_text(path, "prompts", largest=LARGEST_FILE), path)
    prompts = [" ".join(prompt.split()) for prompt in rows if prompt.strip()]
    if not prompts:
        raise InvalidSettings(f"no prompts in {path}: give at least one")
    return prompts


def _read_lines(text: str, path: Path) -> list[str]:
    return [line for line in _split_lines(text, path) if not line.lstrip().startswith("#")]


def _split_lines(text: str, path: Path) -> list[str]:
    """Split at newlines only, because a prompt may contain other separators of Unicode."""
    lines = re.split("\r?\n", text)
    for number, line in enumerate(lines, 1):
        if "\r" in line:
            raise InvalidSettings(
                f"{path}, line {number}: a carriage return without a newline; save it with newlines"
            )
    return lines


def _read_csv(text: str, path: Path) -> list[str]:
    """Read the column of the prompts; the delimiter is the one that gives the table such a column."""
    marked = re.match("sep=(.)\r?\n", text)  # spreadsheet programs write it
    if marked:
        text = text[marked.end() :]
    delimiters = marked[1] if marked else "\t" if path.suffix.lower() == ".tsv" else ",;\t|"
    tables, errors = [], []
    for delimiter in delimiters:
        try:
            tables.append(_read_rows(text, delimiter))
        except csv.Error as error:
            errors.append(error)
    for rows in tables:
        header = [name.strip().lower() for name in rows[0]] if rows else []
        if COLUMN in header:
            return _take_column(rows, header, path)
    if errors:
        raise InvalidSettings(f"{path}: {errors[0]}")
    return _take_only_column(tables, path)


def _read_rows(text: str, delimiter: str) -> list[list[str]]:
    """Return the rows that are not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    return [row for row in reader if row]


def _take_column(rows: list[list[str]], header: list[str], path: Path) -> list[str]:
    """Return the column of the prompts without its header."""
    if header.count(COLUMN) > 1:
        raise InvalidSettings(f"{path} has {header.count(COLUMN)} columns {COLUMN!r}: keep one")
    column = header.index(COLUMN)
    for number, row in enumerate(rows[1:], 2):
        if len(row) <= column:
            raise InvalidSettings(f"{path}, row {number}: no {COLUMN}")
        if any(field.strip() for field in row[len(header) :]):
            raise InvalidSettings(
                f"{path}, row {number}: more fields than the header; quote a prompt that contains the delimiter"
            )
    return [row[column] for row in rows[1:]]


def _take_only_column(tables: list[list[list[str]]], path: Path) -> list[str]:
    """Return the only column of a table without a header; under no delimiter may it have more columns."""
    first, *others = tables
    wide = [rows for rows in others if rows and min(map(len, rows)) > 1]
    for rows in [first, *wide] if any(len(row) > 1 for row in first) else wide:
        columns = " ".join(", ".join(rows[0]).split())
        raise InvalidSettings(f"{path} has no column {COLUMN!r}: its columns are {columns}")
    return [row[0] for row in first]


def _read_json(text: str, path: Path) -> list[str]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise InvalidSettings(f"{path}: not JSON: {error}") from None
    if not isinstance(values, list):
        raise InvalidSettings(f"{path}: give a list of texts, or of objects with {COLUMN!r}")
    return [_read_value(value, f"{path}, entry {i}") for i, value in enumerate(values, 1)]


def _read_jsonl(text: str, path: Path) -> list[str]:
    prompts = []
    for number, line in enumerate(_split_lines(text, path), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            raise InvalidSettings(f"{path}, line {number}: not JSON: {error}") from None
        prompts.append(_read_value(value, f"{path}, line {number}"))
    return prompts


def _read_value(value: Any, place: str) -> str:
    prompt = value.get(COLUMN) if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise InvalidSettings(f"{place}: give a text, or an object with {COLUMN!r}")
    return prompt


_READERS: dict[str, Callable[[str, Path], list[str]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
}
