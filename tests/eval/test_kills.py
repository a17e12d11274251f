"""``eval``, ``tune`` and ``heads search``, killed at any moment and run again, give what an uninterrupted run gives."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from diffusers import WanPipeline

from dit_accel import cli
from dit_accel.io.jsonl import read_logs
from dit_accel_assets import tiny_world_path
from dit_accel_eval import paired_runner, recorder, report, runs
from dit_accel_eval.clip_files import read_clip
from dit_accel_eval.dense import DenseBackend
from dit_accel_eval.heads import run, sampling
from dit_accel_eval.tune import run as tune_run
from dit_accel_eval.tune import search

pytestmark = pytest.mark.slow

KILLS = 25
PROMPTS = (
    "a red circle moving up on a navy background",
    "a blue square moving left on a black background",
)
SIZE = ["--height", "16", "--width", "16", "--frames", "5", "--steps", "1"]
SPARSE = "schedule.min_tokens=0:schedule.dense_steps=0"
SCORES = ("candidate", "prompt", "score", "seed")
FIGURES = ("setting", "prompt", "psnr", "ssim", "density_all", "frames", "no_effect")
LOADED = (report, run, search)


@pytest.fixture(scope="module")
def pipe() -> WanPipeline:
    pipe = WanPipeline.from_pretrained(tiny_world_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def _no_clock(pipe: WanPipeline, monkeypatch) -> None:
    """Load the model once for all processes, and take speed-ups from nothing that a clock measures."""
    for module in (paired_runner, sampling):
        monkeypatch.setattr(module, "load_pipeline", lambda *_: pipe)
    for module in (runs, tune_run):
        monkeypatch.setattr(module, "fastest_dense", lambda *_: DenseBackend())
    monkeypatch.setattr(recorder, "reported_speedup", lambda *_: 1.5)
    monkeypatch.setattr(search, "speedup", lambda _, clip: 2 - clip.attention.density["all_calls"])


@dataclass(frozen=True)
class Run:
    """Exit code and standard output of a command, and its seconds."""

    code: int | None
    printed: str
    seconds: float


def start(arguments: list[str], folder: Path, kill_after: float | None = None) -> Run:
    """Run a command in a process of its own in a folder, and kill it after some seconds if it still runs."""
    folder.mkdir(exist_ok=True)
    log, begin = folder.with_suffix(".out"), time.monotonic()
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        sys.stdout, sys.stderr = (open(f"{log}{n}", "w") for n in (1, 2))  # noqa: SIM115, PTH123
        code = 3
        try:
            code = cli.main(arguments)
            sys.stdout.flush()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    return Run(code, Path(f"{log}1").read_text(), time.monotonic() - begin)


def names(folder: Path) -> list[str]:
    """Return the files of a folder. Dense frames of a finished search are gone."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def check_kills(
    arguments: list[str], tmp_path: Path, outcome: Callable[[Path, str], Any], seed: int
) -> None:
    """Check that 25 runs which were killed and run again have the outcome and the files of a whole one."""
    whole = start(arguments, tmp_path / "whole")
    assert whole.code == 0, Path(f"{tmp_path / 'whole'}.out2").read_text()
    expected = outcome(tmp_path / "whole", whole.printed), names(tmp_path / "whole")
    assert not [name for name in expected[1] if Path(name).name.startswith(".")]
    moments, shortest, killed = random.Random(seed), whole.seconds, 0
    while killed < KILLS:
        folder, moment = tmp_path / str(killed), moments.uniform(0, shortest)
        first = start(arguments, folder, moment)
        if first.code is not None:
            shortest = min(shortest, first.seconds)
            shutil.rmtree(folder)
            continue
        killed += 1
        # An encoder whose input ended writes its file to the end.
        time.sleep(0.2)
        again = start(arguments, folder)
        assert again.code == 0, f"killed after {moment:.3f} s"
        actual = outcome(folder, again.printed), names(folder)
        assert actual == expected, f"killed after {moment:.3f} s"


def test_eval(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    methods = f"svg-ear:density=0.3:{SPARSE}"
    arguments = [*("eval", "--prompts", str(tmp_path / "p.txt"), "--methods", methods), *SIZE]
    check_kills([*arguments, "--floor", "none", "--out", "."], tmp_path, read_evaluation, 0)


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


def test_tune(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    search_size = ["--clips", "2", "--validate", "2", "--trials", "2", "--methods", "svg-ear"]
    arguments = ["tune", "--prompts", str(tmp_path / "p.txt"), "--target", "psnr>=-50"]
    size = [*SIZE[:-1], "2"]
    check_kills([*arguments, *search_size, *size, "--out", "p.yaml"], tmp_path, read_tuned, 1)


def read_tuned(folder: Path, printed: str) -> dict[str, Any]:
    """Return what a search printed, and its profile."""
    assert (folder / "p.png").read_bytes()[:4] == b"\x89PNG"
    return {"printed": printed, "profile": (folder / "p.yaml").read_text()}


def test_heads_search(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(PROMPTS[0])
    arguments = ["heads", "search", "--prompts", str(tmp_path / "p.txt"), "--reward", "sharpness"]
    arguments += ["--rounds", "1", "--top-k", "1", "--batch", "1", *SIZE, "--out", "."]
    check_kills(arguments, tmp_path, read_search, 2)


def read_search(folder: Path, printed: str) -> dict[str, Any]:
    """Return what a search printed, its request, and its scores."""
    records = read_logs(folder / "scores-0-of-1.jsonl")
    scores = [json.dumps([record[name] for name in SCORES]) for record in records]
    return {
        "printed": printed,
        "request": (folder / "search.json").read_text(),
        "scores": sorted(set(scores)),
    }
