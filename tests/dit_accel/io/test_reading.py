"""Files of the user are read whole, or refused in one line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.bad_files import LAUGHS, MERGED

from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import RenderSettings, build_profile, parse_assignments
from dit_accel.io.parsing import parse_integers
from dit_accel.io.prompts import read_prompts
from dit_accel.io.reading import DEEPEST, parse_json, read_bytes, read_json, read_yaml
from dit_accel.runtime.profile import Profile, knobs_of

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
KNOBS = ("density", "refresh", "query_clusters", "selection", "skipped", "schedule.rules")
OTHER_KNOBS = ("schedule.dense_steps", "schedule.dense_layers", "guard.limit", "guard.mode", "")
VALUES = st.text(alphabet="0123456789.,+-eEnaifxtrulso[]{}: ", max_size=12) | st.text(max_size=8)


def write(folder: str, name: str, content: bytes) -> Path:
    path = Path(folder) / name
    path.write_bytes(content)
    return path


def assert_one_line(error: InvalidSettings) -> None:
    assert len(str(error).splitlines()) == 1


@pytest.fixture(scope="module")
def folder() -> Iterator[str]:
    with TemporaryDirectory() as name:
        yield name


@settings(max_examples=40, deadline=None)
@given(value=PLAIN)
def test_json_is_read_as_it_was_written(folder: str, value: Any) -> None:
    assert read_json(write(folder, "a.json", json.dumps(value).encode()), "file") == value


@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"a: &a [*a]")
@example(b"!!timestamp x")
@example(b"!!int ''")
@example(b"!!set {[a]: b}")
@example(b"\x00")
@example(b"{" * 600)
@example(b"- " * 600)
def test_any_content_is_a_value_or_refused(folder: str, content: bytes) -> None:
    for read, name in ((read_json, "a.json"), (read_yaml, "a.yaml")):
        try:
            read(write(folder, name, content), "file")
        except InvalidSettings as error:
            assert_one_line(error)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(
        alphabet=st.sampled_from('a,;\t|"\n\r\u2028\x0c{}[]# p') | st.characters(), max_size=60
    )
)
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".TSV", ".json", ".jsonl"])
def test_any_prompt_file_has_prompts_or_is_refused(folder: str, suffix: str, text: str) -> None:
    try:
        prompts = read_prompts(write(folder, f"p{suffix}", text.encode(errors="replace")))
    except InvalidSettings as error:
        assert_one_line(error)
    else:
        assert prompts
        assert all(prompt and prompt == " ".join(prompt.split()) for prompt in prompts)


@settings(max_examples=150, deadline=None)
@given(knob=st.sampled_from(KNOBS + OTHER_KNOBS) | st.text(max_size=8), value=VALUES)
@example("density", "[1]")
@example(".density", "1")
@example("[a]", "1")
@example("guard.limit", "inf")
@example("refresh", str(2**63))
def test_any_knob_makes_a_profile_or_is_refused(knob: str, value: str) -> None:
    try:
        profile = build_profile(
            RenderSettings("a fox", knobs=parse_assignments([f"{knob}={value}"]))
        )
    except InvalidSettings:
        return
    numbers = [
        *knobs_of(profile.method).values(),
        profile.schedule.dense_steps,
        profile.guard.limit,
    ]
    assert all(math.isfinite(n) and abs(n) < 2**63 for n in numbers if isinstance(n, int | float))
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=12) | st.lists(st.integers()).map(lambda n: ",".join(map(str, n))))
def test_any_seeds_are_in_range_or_refused(text: str) -> None:
    try:
        numbers = parse_integers("--seeds", text)
    except InvalidSettings:
        return
    assert all(0 <= number < 2**63 for number in numbers)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", [LAUGHS, MERGED, "a: &a {<<: *a}"], ids=["laughs", "merged", "self"]
)
def test_what_expands_is_refused_before_it_does(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(
        InvalidSettings, match=r"more than 100000 values|nested deeper|undefined alias"
    ):
        read_yaml(tmp_path / "a.yaml", "profile")


def test_aliases_and_merged_keys_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    values = read_yaml(tmp_path / "a.yaml", "profile")
    assert values == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}


def test_depth_has_a_bound() -> None:
    assert parse_json("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1))
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        parse_json("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "pipe", ".", "missing", "a\0b", "loop"])
def test_only_regular_files_are_read(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    with pytest.raises(InvalidSettings, match="cannot read profile"):
        read_bytes(name, "profile", largest=10)


def test_the_largest_size_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    assert read_bytes(tmp_path / "a", "profile", largest=10) == b"x" * 10
    with pytest.raises(InvalidSettings, match="larger than"):
        read_bytes(tmp_path / "a", "profile", largest=9)
