"""Records on disk are strict JSON Lines."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from dit_accel.io.jsonl import append_record, read_records, to_json


def test_infinite_and_missing_values_are_strict_json() -> None:
    text = to_json({"a": math.inf, "b": [math.nan, -math.inf, 1.5], "c": (1, "x")})
    assert json.loads(text) == {"a": "inf", "b": [None, "-inf", 1.5], "c": [1, "x"]}


def test_named_tuples_keep_their_names() -> None:
    class Point(NamedTuple):
        x: float
        y: float

    assert json.loads(to_json(Point(1.0, math.nan))) == {"x": 1.0, "y": None}


def test_a_line_that_was_cut_off_loses_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert read_records(path) == []
    append_record(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "cut')
    append_record(path, {"n": 3})
    append_record(path, {"n": 4})
    assert [r["n"] for r in read_records(path)] == [1, 3, 4]


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes('{"n": "a\u2028b\x85c"}\r\n[1]\n3\n\xff\n{"n": 2}'.encode("utf-8"))
    assert [r["n"] for r in read_records(path)] == ["a\u2028b\x85c", 2]
    path.write_bytes(b'\xff\n{"n": 1}\n')
    assert [r["n"] for r in read_records(path)] == [1]
