"""Prompts from files of every format and from the bundled sets."""

from pathlib import Path

import pytest

from dit_accel.errors import InvalidSettings
from dit_accel.io.prompts import read_prompts
from dit_accel_assets import prompt_sets


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "# about\na fox\n\n  an owl \n"),
        ("p.csv", 'id,Prompt\n1,a fox\n2,"an owl"\n\n'),
        ("p.csv", "a fox\nan owl\n"),
        ("p.csv", '\ufeffprompt\n"a\nfox"\nan owl\n'),
        ("p.jsonl", '"a fox"\n{"prompt": "an owl", "seed": 3}\n'),
    ],
    ids=["txt", "csv", "csv-one-column", "csv-of-a-spreadsheet", "jsonl"],
)
def test_every_format(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_prompts(tmp_path / name) == ["a fox", "an owl"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "# nothing\n", "no prompts in"),
        ("p.csv", "id,text\n1,a fox\n", "no column 'prompt': its columns are id, text"),
        ("p.csv", "id,prompt\n1\n", "line 2: no prompt"),
        ("p.csv", 'prompt\n"a fox\n', "unexpected end of data"),
        ("p.jsonl", "{\n", "line 1: not JSON"),
        ("p.jsonl", '{"text": "a fox"}\n', "line 1: give a text, or an object with 'prompt'"),
    ],
    ids=["empty", "no-column", "short-row", "open-quote", "no-json", "no-key"],
)
def test_an_invalid_file_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidSettings, match=message):
        read_prompts(tmp_path / name)


def test_a_missing_file_names_the_sets(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidSettings, match=r"give a file, or a set: motions, spatial-relations, tiny-"
    ):
        read_prompts(tmp_path / "none.txt")


@pytest.mark.parametrize("name", list(prompt_sets()))
def test_sets_name_their_licence_and_have_no_duplicates(name: str) -> None:
    assert "Apache-2.0" in prompt_sets()[name].read_text().splitlines()[0]
    prompts = read_prompts(name)
    assert len(prompts) == len(set(prompts)) >= 10
