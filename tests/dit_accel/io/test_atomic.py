"""Files appear whole or not at all, and outputs that cannot be written are refused before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.io.atomic import atomic_write, check_writable, sweep_temporaries

KILLED = """
import os, signal, sys
from pathlib import Path
from dit_accel.io.atomic import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_temporary_files_of_killed_processes_are_swept(tmp_path: Path) -> None:
    def leave() -> None:
        command = [sys.executable, "-c", KILLED, str(tmp_path / "a.json")]
        assert subprocess.run(command).returncode < 0
        assert len(list(tmp_path.iterdir())) == 1

    leave()
    check_writable(tmp_path / "b.json")
    assert not list(tmp_path.iterdir())
    leave()
    with atomic_write(tmp_path / "a.json") as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "whole"


def test_temporary_files_in_use_and_foreign_files_stay(tmp_path: Path) -> None:
    foreign = tmp_path / ".dit-accel-notes.txt"
    foreign.touch()
    with atomic_write(tmp_path / "a.json") as temporary:
        sweep_temporaries(tmp_path)
        assert temporary.exists()
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [foreign.name, "a.json"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a.json"):
        raise ZeroDivisionError
    empty = pytest.raises(RunFailed, match=r"cannot write .*a\.json: nothing was written")
    with empty, atomic_write(tmp_path / "a.json"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [240, 255])
def test_the_longest_names_can_be_written(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("a" * (length - 4) + ".mp4")
    check_writable(path)
    with atomic_write(path) as temporary:
        assert len(temporary.name) <= 40
        temporary.write_text("x")
    assert path.read_text() == "x"


def test_a_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "new" / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    for text in ("first", "second"):
        check_writable(link)
        with atomic_write(link) as temporary:
            temporary.write_text(text)
        assert link.is_symlink()
        assert target.read_text() == text


def refused(path: Path, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        check_writable(path)


def test_a_read_only_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.touch()
    check_writable(path)
    # Root may write everywhere.
    monkeypatch.setattr("os.access", lambda name, _: name != path)
    refused(path, "is read-only: give another name")


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder: give a file name")
    refused(tmp_path / ("x" * 256), "too long with 256 bytes")
    refused(tmp_path / ("猫" * 84 + ".mp4"), "too long with 256 bytes")
    refused(tmp_path / ("x" * 256) / "a.mp4", "too long with 256 bytes")
    refused(tmp_path / "new" / ("x" * 256) / "a.mp4", "too long with 256 bytes")
    refused(Path(os.fsdecode(b"\xff.mp4")), "is not valid UTF-8")
    refused(tmp_path / "\ud800.mp4", "is not valid UTF-8")
    refused(tmp_path / "a\0.mp4", "has a zero byte")
    os.mkfifo(tmp_path / "pipe.mp4")
    refused(tmp_path / "pipe.mp4", "is a device or a pipe")
    refused(Path("/dev/full"), "is a device or a pipe")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    refused(tmp_path / "loop.mp4", "is a link that leads back to itself")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "a.mp4", "is a file, not a folder")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"pipe.mp4", "loop.mp4", "file"}
