"""``eval``, ``tune`` and ``heads search``, killed at any moment and run again, give what an uninterrupted run gives."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dit_accel.io.jsonl import read_logs
from dit_accel_eval.clip_files import read_clip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

KILLS = 25
PROMPTS = (
    "a red circle moving up on a navy background",
    "a blue square moving left on a black background",
)
SIZE = ["--height", "16", "--width", "16", "--frames", "5", "--steps", "1"]
SPARSE = "schedule.min_tokens=0:schedule.dense_steps=0"
SCORES = ("candidate", "prompt", "score", "seed")
FIGURES = ("setting", "prompt", "psnr", "ssim", "density_all", "frames", "no_effect")
SERVER = Path(__file__).parents[1] / "support/killed_runs.py"


@dataclass(frozen=True)
class Run:
    """Exit code of a command, or None if it was killed, its standard output and its seconds."""

    code: int | None
    printed: str
    seconds: float


@dataclass(frozen=True)
class Server:
    """A process that runs commands in its forks."""

    process: subprocess.Popen[str]

    def run(self, arguments: list[str], folder: Path, kill_after: float | None = None) -> Run:
        """Run a command in a folder, and kill it after some seconds if it still runs."""
        folder.mkdir(exist_ok=True)
        request = {"arguments": arguments, "folder": str(folder), "kill_after": kill_after}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return Run(printed=Path(f"{folder}.stdout").read_text(), **answer)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, SERVER], text=True, env=environment, **pipes) as process:
        yield Server(process)
        process.stdin.close()


def names(folder: Path) -> list[str]:
    """Return the files of a folder. Dense frames of a finished search are gone."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def check_kills(
    server: Server,
    arguments: list[str],
    tmp_path: Path,
    outcome: Callable[[Path, str], Any],
    seed: int,
) -> None:
    """Check that 25 runs which were killed and run again have the outcome and the files of a whole one."""
    whole = server.run(arguments, tmp_path / "whole")
    assert whole.code == 0, Path(f"{tmp_path / 'whole'}.stderr").read_text()
    expected = outcome(tmp_path / "whole", whole.printed), names(tmp_path / "whole")
    assert not [name for name in expected[1] if Path(name).name.startswith(".")]
    moments, shortest, killed = random.Random(seed), whole.seconds, 0
    while killed < KILLS:
        folder, moment = tmp_path / str(killed), moments.uniform(0, shortest)
        first = server.run(arguments, folder, moment)
        if first.code is not None:
            shortest = min(shortest, first.seconds)
            shutil.rmtree(folder)
            continue
        killed += 1
        # An encoder whose input ended writes its file to the end.
        time.sleep(0.2)
        again = server.run(arguments, folder)
        assert again.code == 0, f"killed after {moment:.3f} s"
        actual = outcome(folder, again.printed), names(folder)
        assert actual == expected, f"killed after {moment:.3f} s"


def test_eval(server: Server, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    methods = f"svg-ear:density=0.3:{SPARSE}"
    arguments = [*("eval", "--prompts", str(tmp_path / "p.txt"), "--methods", methods), *SIZE]
    arguments += ["--floor", "none", "--out", "."]
    check_kills(server, arguments, tmp_path, read_evaluation, 0)


def read_evaluation(folder: Path, printed: str) -> dict[str, Any]:
    """Return the table, the page, the figures and the frames of an evaluation, without what a clock measures."""
    page = (folder / "report.html").read_text()
    panels = re.findall(r'data-video="([^"]+)"', page)
    videos = json.loads(re.search(r'id="videos">(.*?)</script>', page, re.DOTALL)[1])
    assert set(panels) == set(videos)
    records = {record["key"]: record for record in read_logs(folder / "results.jsonl")}
    return {
        "table": printed,
        "page": re.sub(r'id="videos">.*?</script>', "", page, flags=re.DOTALL),
        "figures": {key: {name: r[name] for name in FIGURES} for key, r in records.items()},
        "frames": {p.name: read_clip(p).tolist() for p in sorted((folder / "clips").iterdir())},
    }


def test_tune(server: Server, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    search_size = ["--clips", "2", "--validate", "2", "--trials", "2", "--levers", "attention"]
    search_size += ["--methods", "svg-ear"]
    arguments = ["tune", "--prompts", str(tmp_path / "p.txt"), "--target", "psnr>=-50"]
    size = [*SIZE[:-1], "2"]
    arguments += [*search_size, *size, "--out", "p.yaml"]
    check_kills(server, arguments, tmp_path, read_tuned, 1)


def read_tuned(folder: Path, printed: str) -> dict[str, Any]:
    """Return what a search printed, and its profile."""
    assert (folder / "p.png").read_bytes()[:4] == b"\x89PNG"
    return {"printed": printed, "profile": (folder / "p.yaml").read_text()}


def test_heads_search(server: Server, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(PROMPTS[0])
    arguments = ["heads", "search", "--prompts", str(tmp_path / "p.txt"), "--reward", "sharpness"]
    arguments += ["--rounds", "1", "--top-k", "1", "--batch", "1", *SIZE, "--out", "."]
    check_kills(server, arguments, tmp_path, read_search, 2)


def read_search(folder: Path, printed: str) -> dict[str, Any]:
    """Return what a search printed, its request, and its scores."""
    records = read_logs(folder / "scores-0-of-1.jsonl")
    scores = [json.dumps([record[name] for name in SCORES]) for record in records]
    return {
        "printed": printed,
        "request": (folder / "search.json").read_text(),
        "scores": sorted(set(scores)),
    }
