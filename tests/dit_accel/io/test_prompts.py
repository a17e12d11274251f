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
        ("p.TXT", "a fox\r\nan owl\r\n"),
        ("p.CSV", 'seed;prompt\r\n1;a fox\r\n2;"an owl";\r\n'),
        ("p.csv", 'prompt\tsource\n"a fox"\tx, y\nan owl\t"y; z"\n'),
        ("p.csv", "sep=|\nseed|prompt\n1|a fox\n2|an owl\n"),
        ("p.tsv", "seed\tprompt\n1\ta fox\n2\tan owl\n"),
        ("p.json", '["a fox", {"prompt": "an owl"}]'),
        ("p.JSONL", '\ufeff"a fox"\r\n\r\n"an owl"\r\n'),
        ("p.ndjson", '"a\x85fox"\n"an\u2028owl"\n'),
        ("p", "a\u2028fox\nan\fowl\n"),
    ],
    ids=[
        *("txt", "csv", "csv-one-column", "csv-of-a-spreadsheet", "jsonl"),
        *("txt-with-crlf", "csv-with-semicolons", "csv-with-tabs", "csv-with-sep"),
        *("tsv", "json", "jsonl-with-crlf", "jsonl-with-separators", "txt-with-separators"),
    ],
)
def test_every_format(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompts(tmp_path / name) == ["a fox", "an owl"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "# nothing\n", "no prompts in"),
        ("p.csv", "id,text\n1,a fox\n", "no column 'prompt': its columns are id, text"),
        ("p.csv", "id,prompt\n1\n", "row 2: no prompt"),
        ("p.csv", "id,prompt\n1,a fox, red\n", "row 2: more fields than the header"),
        ("p.csv", "prompt,Prompt\na,b\n", "has 2 columns 'prompt'"),
        ("p.csv", "id;text\n1;a fox\n", "no column 'prompt': its columns are id, text"),
        ("p.tsv", "id\ttext\n1\ta fox\n", "no column 'prompt': its columns are id, text"),
        ("p.txt", "a fox\ran owl\n", "line 1: a carriage return without a newline"),
        ("p.json", '{"prompt": "a fox"}', "give a list of texts"),
        ("p.json", '["a fox", 3]', "entry 2: give a text"),
        ("p.json", '["a fox"', "not JSON: Expecting"),
        ("p.YAML", "- a fox\n", "is not accepted; give one prompt per line"),
        ("p.csv", 'prompt\n"a fox\n', "unexpected end of data"),
        ("p.jsonl", "{\n", "line 1: not JSON"),
        ("p.jsonl", '{"text": "a fox"}\n', "line 1: give a text, or an object with 'prompt'"),
    ],
    ids=[
        *("empty", "no-column", "short-row", "comma-in-a-prompt", "two-columns"),
        *("no-column-with-semicolons", "no-column-with-tabs", "only-carriage-returns"),
        *("json-object", "json-number", "json-cut-off", "yaml"),
        *("open-quote", "no-json", "no-key"),
    ],
)
def test_an_invalid_file_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_bytes(text.encode())
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
