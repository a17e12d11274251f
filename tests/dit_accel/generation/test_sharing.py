"""Prompts are split among processes, and a batch that was killed resumes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.launching import SIZE, launch

import dit_accel.generation.distributed
from dit_accel import cli
from dit_accel.cli.render import parse_ulysses
from dit_accel.errors import InvalidSettings
from dit_accel.generation import journal
from dit_accel.generation.batch import (
    Batch,
    BatchOptions,
    Job,
)
from dit_accel.generation.distributed import Process, this_process
from dit_accel.generation.identity import identify
from dit_accel.generation.journal import Journal
from dit_accel.generation.loading import read_card
from dit_accel.generation.outputs import comparison_path, remove_comparison, strip_path
from dit_accel.generation.placement import LoadOptions
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.jsonl import to_json
from dit_accel.io.media import read_metadata, write_clip

PROMPTS = [
    f"a red circle on a {color} background" for color in ("navy", "white", "green", "gray", "pink")
]
SCRIPTS = Path(__file__).parents[2] / "support"


def render_command(folder: Path) -> list[str]:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    files = ["--prompts", str(folder / "prompts.txt"), "-o", str(folder / "out")]
    return ["render", *files, "--report", str(folder / "report.json"), *SIZE]


def modification_times(folder: Path) -> dict[str, int]:
    """Return name to modification time of all files in the output folder."""
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "out").iterdir())}


def test_a_dying_process_loses_nothing_and_a_rerun_renders_the_rest(tmp_path: Path) -> None:
    arguments = render_command(tmp_path)
    assert launch(2, [str(SCRIPTS / "dying_render.py"), "1"], arguments) != 0
    before = modification_times(tmp_path)
    assert 1 <= len(before) < len(PROMPTS)
    assert all(name.endswith(".mp4") and not name.startswith(".") for name in before)
    assert launch(2, ["-m", "dit_accel"], arguments) == 0
    after = modification_times(tmp_path)
    assert len(after) == len(PROMPTS)
    records = json.loads((tmp_path / "report.json").read_text())
    assert [record["prompt"] for record in records] == PROMPTS
    recorded = {Path(record["output"]).name for record in records}
    unchanged = {name for name, time in before.items() if after[name] == time}
    # A clip whose record was lost with its process is rendered again.
    assert len(recorded & unchanged) >= len(before) - 2
    assert cli.main(arguments) == 0
    assert modification_times(tmp_path) == after
    assert json.loads((tmp_path / "report.json").read_text()) == records


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_a_signal_during_a_write_lets_that_file_finish(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The signal comes right after the encoder starts, which would still write a file that was cleaned up."""
    command = [sys.executable, str(SCRIPTS / "ended_render.py"), str(int(number))]
    command += render_command(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (1 if number == signal.SIGINT else -signal.SIGTERM)
    assert ("error: interrupted" in done.stderr) == (number == signal.SIGINT)
    (name,) = modification_times(tmp_path)
    assert name.startswith("0000-")
    assert read_metadata(tmp_path / "out" / name)["prompt"] == PROMPTS[0]


def test_other_settings_and_overwrite_render_again(tmp_path: Path, capsys) -> None:
    arguments = render_command(tmp_path)
    at = arguments.index("--report")
    del arguments[at : at + 2]
    assert cli.main(arguments) == 0
    assert "5 rendered, 0 already done" in capsys.readouterr().out
    first = modification_times(tmp_path)
    assert cli.main(arguments) == 0
    assert "0 rendered, 5 already done" in capsys.readouterr().out
    assert modification_times(tmp_path) == first
    assert cli.main([*arguments, "--seed", "1"]) == 0
    second = modification_times(tmp_path)
    assert len(second) == 10
    assert first.items() <= second.items(), "a clip of other settings was replaced"
    assert cli.main([*arguments, "--seed", "1", "--overwrite"]) == 0
    third = modification_times(tmp_path)
    assert {name for name in second if third[name] != second[name]} == second.keys() - first.keys()


def test_side_by_side_files_of_other_settings_stay(tmp_path: Path, capsys) -> None:
    report, out = tmp_path / "report.json", tmp_path / "out"
    arguments = ["render", *PROMPTS[:2], "-o", str(out), "--report", str(report), *SIZE]

    def count_rendered(*options: str) -> int:
        assert cli.main([*arguments, *options]) == 0
        return int(re.search(r"(\d) rendered", capsys.readouterr().out)[1])

    assert count_rendered("--compare") == 2
    assert count_rendered("--compare") == count_rendered() == 0
    assert count_rendered("--seed", "1") == 2
    assert len(list(out.iterdir())) == 8
    assert count_rendered("--seed", "1", "--compare") == 2
    assert all("quality" in record for record in json.loads(report.read_text()))


def test_a_comparison_is_done_with_all_its_files_and_its_record(tmp_path: Path) -> None:
    settings, path = RenderSettings(PROMPTS[0]), tmp_path / "a.png"
    job = Job(settings, read_card("tiny-world"), path)
    metadata = identify(settings, {})
    frames = np.zeros((1, 8, 8, 3), np.float32)
    record = json.loads(to_json({**metadata, "output": str(path)}))
    compared = Batch([job], BatchOptions(compare=True), Process())
    reported = replace(compared, options=BatchOptions(True, report=tmp_path / "report.json"))
    for file in (path, comparison_path(path), strip_path(path)):
        assert not compared.is_done(job, [])
        write_clip(file, frames, 1, metadata)
    assert compared.is_done(job, [])
    assert not reported.is_done(job, [record])
    assert reported.is_done(job, [{**record, "quality": {}}])
    write_clip(comparison_path(path), frames, 1, {**metadata, "seed": 1})
    assert not compared.is_done(job, [])
    assert replace(compared, options=BatchOptions()).is_done(job, [])
    remove_comparison(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    # Without a clip of ours beside it, the strip is someone else's.
    strip_path(path).touch()
    remove_comparison(path)
    assert strip_path(path).exists()


def test_a_report_never_holds_a_record_of_other_settings(tmp_path: Path) -> None:
    arguments = render_command(tmp_path)
    at = arguments.index("--report")
    without_report = [*arguments[:at], *arguments[at + 2 :]]
    report = tmp_path / "new" / "report.json"
    arguments[at + 1] = str(report)
    assert cli.main(arguments) == 0
    assert cli.main([*without_report, "--seed", "1"]) == 0
    assert cli.main([*arguments, "--seed", "1"]) == 0
    assert {record["seed"] for record in json.loads(report.read_text())} == {1}


def test_a_record_that_is_added_while_a_report_is_written_is_in_it(tmp_path, monkeypatch) -> None:
    """The other process reads, adds and writes in between, and sees no reason to write again."""
    requests = [(identify(RenderSettings(t), {}), tmp_path / f"{t}.mp4") for t in PROMPTS[:2]]
    records = [{**identity, "output": str(path)} for identity, path in requests]
    first, second = (Journal(tmp_path / "report.json", rank) for rank in range(2))
    write = journal.to_json

    def write_slowly(value: Any, *, indent: int | None = None) -> str:
        if not second.path.exists():
            second.append(records[1])
            second.merge(requests)
        return write(value, indent=indent)

    first.append(records[0])
    monkeypatch.setattr(journal, "to_json", write_slowly)
    first.merge(requests)
    merged = json.loads((tmp_path / "report.json").read_text())
    assert [record["prompt"] for record in merged] == PROMPTS[:2]


def test_a_process_without_a_share_of_one_prompt_writes_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dit_accel.generation.distributed, "this_process", lambda _: Process(1, 2))
    report = tmp_path / "report.json"
    arguments = [PROMPTS[0], "-o", str(tmp_path / "a.mp4"), "--report", str(report), *SIZE]
    assert cli.main(["render", *arguments]) == 0
    assert not list(tmp_path.iterdir())


def test_shares_cover_all_items_and_do_not_overlap() -> None:
    for count in (1, 2, 3, 7):
        shares = [Process(rank, count).share(range(5)) for rank in range(count)]
        assert sorted(i for share in shares for i in share) == list(range(5))
    assert Process(1, 2, ulysses=2).share(range(5)) == range(5)
    assert [Process(rank, 2, ulysses=2).writes for rank in range(2)] == [True, False]
    assert Process(1, 2, 1).load_options(LoadOptions("cuda")).device == "cuda:1"
    assert Process(1, 2, 1).load_options(LoadOptions("cuda:0")).device == "cuda:0"


def test_too_few_processes_and_invalid_degrees_are_refused() -> None:
    with pytest.raises(
        InvalidSettings, match="ulysses=2 needs as many processes, but 1 are running: start with"
    ):
        this_process(2)
    for text, message in (("ring=2", "use ulysses=N"), ("2", "takes ulysses=N, got '2'")):
        with pytest.raises(InvalidSettings, match=message):
            parse_ulysses(text)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--compare"]], ids=["plain", "compare"])
def test_a_run_that_was_killed_and_run_again_equals_one_that_was_not(
    tmp_path: Path, options: list[str]
) -> None:
    command = [sys.executable, str(SCRIPTS / "killed_render.py"), str(tmp_path), "25", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
