"""Kill ``dit-accel render`` at random moments, run it again, and compare with a run that was left alone.

Arguments: an empty folder, the number of kills, and options of ``render``. Modules are imported once, and every run is
a fork.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from support.launching import SIZE

from dit_accel import cli
from dit_accel.generation import batch, render
from dit_accel.io.media import read_metadata

PROMPTS = "a red circle on a navy background\na blue square on a white background\n"
MODULES = (batch, render)


def start(folder: Path, options: list[str]) -> int:
    """Start a run in a new process, and return its id."""
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    arguments = ["--prompts", "../prompts.txt", "-o", "out", "--report", "report.json", *SIZE]
    os._exit(cli.main(["render", *arguments, *options]))


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read_results(folder: Path) -> dict[str, Any]:
    """Return the content of all files that a run left, without times."""
    results: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix in (".mp4", ".png"):
            metadata = {**read_metadata(path), "seconds": None}
            results[name] = metadata, np.stack(list(imageio.imiter(path))).tobytes()
        elif name == "report.json":
            results[name] = [without_times(record) for record in json.loads(path.read_text())]
        elif not (name == "log" or name.endswith(".jsonl")):
            results[name] = path.stat().st_size
    return results


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in record.items() if "second" not in name and name != "speedup"
    }


def main(folder: Path, kills: int, options: list[str]) -> None:
    (folder / "prompts.txt").write_text(PROMPTS)
    (folder / "alone").mkdir()
    begin = time.monotonic()
    assert wait(start(folder / "alone", options)) == 0, (folder / "alone/log").read_text()
    duration = time.monotonic() - begin
    expected = read_results(folder / "alone")
    assert len(expected) == (7 if "--compare" in options else 3), list(expected)
    moments = random.Random(kills)
    left = 0
    for number in range(kills):
        killed = folder / f"killed{number}"
        killed.mkdir()
        child = start(killed, options)
        moment = duration * moments.random()
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        wait(child)
        left += any(path.name.startswith(".") for path in killed.rglob("*"))
        assert wait(start(killed, options)) == 0, (killed / "log").read_text()
        results = read_results(killed)
        assert results.keys() == expected.keys(), (moment, results.keys() ^ expected.keys())
        assert results == expected, f"killed after {moment:.3f} s"
    print(f"{kills} kills within {duration:.2f} s; {left} left temporary files, which are swept")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
