"""Prompts shared by several processes, killed and resumed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.launching import SIZE, launched

import dit_accel.generation.distributed
from dit_accel import cli
from dit_accel.cli.render import ulysses_degree
from dit_accel.errors import InvalidSettings
from dit_accel.generation import batch
from dit_accel.generation.batch import Batch, comparison_of, remove_comparison, sheet_of
from dit_accel.generation.distributed import Process, this_process
from dit_accel.generation.placement import LoadOptions
from dit_accel.generation.render import versions
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.jsonl import append_record, to_json
from dit_accel.io.media import read_metadata, write_clip

PROMPTS = [
    f"a red circle on a {color} background" for color in ("navy", "white", "green", "gray", "pink")
]


def command_of(folder: Path) -> list[str]:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    given = ["--prompts", str(folder / "prompts.txt"), "-o", str(folder / "out")]
    return ["render", *given, "--report", str(folder / "report.json"), *SIZE]


def state_of(folder: Path) -> dict[str, int]:
    """Files and when they were written; nothing else is there."""
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "out").iterdir())}


def test_a_rank_that_dies_loses_nothing_and_a_rerun_does_what_is_missing(tmp_path: Path) -> None:
    arguments = command_of(tmp_path)
    dying = [str(Path(__file__).parents[1] / "support/dying_render.py"), "1"]
    assert launched(2, dying, arguments) != 0
    before = state_of(tmp_path)
    assert 1 <= len(before) < len(PROMPTS)
    assert all(name.endswith(".mp4") and not name.startswith(".") for name in before)
    assert launched(2, ["-m", "dit_accel"], arguments) == 0
    after = state_of(tmp_path)
    assert len(after) == len(PROMPTS)
    records = json.loads((tmp_path / "report.json").read_text())
    assert [record["prompt"] for record in records] == PROMPTS
    kept = {Path(r["output"]).name for r in records} & {
        n for n, t in before.items() if after[n] == t
    }
    assert len(kept) >= len(before) - 2  # a clip whose record was lost with its rank is made again
    assert cli.main(arguments) == 0
    assert state_of(tmp_path) == after
    assert json.loads((tmp_path / "report.json").read_text()) == records


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_a_render_that_is_ended_while_it_writes_finishes_that_file(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Right after the encoder was started, when it would still make a file that was cleaned away."""
    script = [
        sys.executable,
        str(Path(__file__).parents[1] / "support/ended_render.py"),
        str(int(number)),
    ]
    done = subprocess.run([*script, *command_of(tmp_path)], capture_output=True, text=True)
    assert done.returncode == (1 if number == signal.SIGINT else -signal.SIGTERM)
    assert ("error: interrupted" in done.stderr) == (number == signal.SIGINT)
    (name,) = state_of(tmp_path)
    assert name.startswith("0000-")
    assert read_metadata(tmp_path / "out" / name)["prompt"] == PROMPTS[0]


def test_other_settings_and_overwrite_render_again(tmp_path: Path, capsys) -> None:
    arguments = command_of(tmp_path)
    at = arguments.index("--report")
    del arguments[at : at + 2]
    assert cli.main(arguments) == 0
    assert "5 rendered, 0 were there" in capsys.readouterr().out
    first = state_of(tmp_path)
    assert cli.main(arguments) == 0
    assert "0 rendered, 5 were there" in capsys.readouterr().out
    assert state_of(tmp_path) == first
    assert cli.main([*arguments, "--seed", "1"]) == 0
    second = state_of(tmp_path)
    assert all(second[name] != first[name] for name in first)
    assert cli.main([*arguments, "--seed", "1", "--overwrite"]) == 0
    assert all(state_of(tmp_path)[name] != second[name] for name in first)


def test_side_by_side_files_of_other_settings_are_not_kept(tmp_path: Path, capsys) -> None:
    report, out = tmp_path / "report.json", tmp_path / "out"
    given = ["render", *PROMPTS[:2], "-o", str(out), "--report", str(report), *SIZE]

    def rendered(*options: str) -> int:
        assert cli.main([*given, *options]) == 0
        return int(re.search(r"(\d) rendered", capsys.readouterr().out)[1])

    assert rendered("--compare") == 2
    assert rendered("--compare") == rendered() == 0
    assert rendered("--seed", "1") == 2
    assert sorted(p.suffix for p in out.iterdir()) == [".mp4", ".mp4"]
    assert rendered("--seed", "1", "--compare") == 2
    assert all("quality" in record for record in json.loads(report.read_text()))


def test_a_comparison_needs_its_own_files_and_figures(tmp_path: Path) -> None:
    settings, path = RenderSettings(PROMPTS[0]), tmp_path / "a.png"
    metadata = {**asdict(settings), "versions": versions()}
    frames = np.zeros((1, 8, 8, 3), np.float32)
    record = json.loads(to_json({**metadata, "output": str(path)}))
    both = Batch(True, None, None, False, True, Process())
    told = replace(both, report=tmp_path / "report.json")
    for file in (path, comparison_of(path), sheet_of(path)):
        assert not both._is_done(settings, path, [])
        write_clip(file, frames, 1, metadata)
    assert both._is_done(settings, path, [])
    assert not told._is_done(settings, path, [record])
    assert told._is_done(settings, path, [{**record, "quality": {}}])
    write_clip(comparison_of(path), frames, 1, {**metadata, "seed": 1})
    assert not both._is_done(settings, path, [])
    assert replace(both, compare=False)._is_done(settings, path, [])
    remove_comparison(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    sheet_of(path).touch()  # of someone else
    remove_comparison(path)
    assert sheet_of(path).exists()


def test_a_report_never_holds_a_record_of_other_settings(tmp_path: Path) -> None:
    arguments = command_of(tmp_path)
    at = arguments.index("--report")
    without = [*arguments[:at], *arguments[at + 2 :]]
    report = tmp_path / "new" / "report.json"  # its folder is made
    arguments[at + 1] = str(report)
    assert cli.main(arguments) == 0
    assert cli.main([*without, "--seed", "1"]) == 0
    assert cli.main([*arguments, "--seed", "1"]) == 0
    assert {record["seed"] for record in json.loads(report.read_text())} == {1}


def test_a_record_that_is_added_while_a_report_is_written_is_in_it(tmp_path, monkeypatch) -> None:
    """By a process that has read, added and written meanwhile, and found nothing new then."""
    requests = [(RenderSettings(text), tmp_path / f"{text}.mp4") for text in PROMPTS[:2]]
    records = [{**asdict(s), "versions": versions(), "output": str(p)} for s, p in requests]
    first, second = (
        Batch(False, None, tmp_path / "report.json", False, True, Process(rank, 2))
        for rank in range(2)
    )
    write = batch.to_json

    def slow(*given: Any, **options: Any) -> str:
        if not second._journal().exists():
            append_record(second._journal(), records[1])
            second._merge(requests)
        return write(*given, **options)

    append_record(first._journal(), records[0])
    monkeypatch.setattr(batch, "to_json", slow)
    first._merge(requests)
    found = json.loads((tmp_path / "report.json").read_text())
    assert [record["prompt"] for record in found] == PROMPTS[:2]


def test_a_report_of_one_prompt_in_a_process_that_has_none(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(dit_accel.generation.distributed, "this_process", lambda _: Process(1, 2))
    report = tmp_path / "report.json"
    given = [PROMPTS[0], "-o", str(tmp_path / "a.mp4"), "--report", str(report), *SIZE]
    assert cli.main(["render", *given]) == 0
    assert not list(tmp_path.iterdir())


def test_shares_are_all_and_apart() -> None:
    for count in (1, 2, 3, 7):
        shares = [Process(rank, count).share(range(5)) for rank in range(count)]
        assert sorted(i for share in shares for i in share) == list(range(5))
    assert Process(1, 2, ulysses=2).share(range(5)) == range(5)
    assert [Process(rank, 2, ulysses=2).writes for rank in range(2)] == [True, False]
    assert Process(1, 2, 1).load_options(LoadOptions("cuda")).device == "cuda:1"
    assert Process(1, 2, 1).load_options(LoadOptions("cuda:0")).device == "cuda:0"


def test_too_few_processes_are_told() -> None:
    with pytest.raises(
        InvalidSettings, match="ulysses=2 needs as many processes, here are 1: start with torchrun"
    ):
        this_process(2)
    for text, message in (("ring=2", "use ulysses=N"), ("2", "takes ulysses=N, got '2'")):
        with pytest.raises(InvalidSettings, match=message):
            ulysses_degree(text)
