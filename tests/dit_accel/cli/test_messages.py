"""Warnings are one line each, once a command, and libraries are silent unless asked."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from dit_accel.cli.messages import Messages
from dit_accel.runtime.cost_model import SlowdownWarning

RENDER = ["render", "a red circle", "--size", "smoke", "--steps", "2", "-o", "a.mp4"]
SPARSE = ["--set", "schedule.min_tokens=0", "--set", "schedule.dense_steps=0"]


def warn_and_log() -> None:
    for _ in range(2):
        warnings.warn("slow\n  call", SlowdownWarning, stacklevel=1)
    warnings.warn("the frames have odd sizes", UserWarning, stacklevel=1)
    warnings.warn_explicit("No CUDA runtime is found", UserWarning, "torch/cuda.py", 1)
    logging.getLogger("diffusers").warning("a config has a surplus key")


@pytest.mark.parametrize(
    ("level", "printed"),
    [
        ("normal", ["slow call", "the frames have odd sizes"]),
        ("quiet", []),
        (
            "verbose",
            ["slow call", "the frames have odd sizes", "No CUDA runtime is found"],
        ),
    ],
)
def test_warnings_are_lines(capsys, caplog, level, printed: list[str]) -> None:
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    with Messages() as messages:
        messages.set_level(level)
        warn_and_log()
    logger.removeHandler(caplog.handler)
    assert capsys.readouterr().err.splitlines() == [f"warning: {text}" for text in printed]
    assert bool(caplog.messages) == (level == "verbose")
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--quiet"], ["-v"]], ids=["normal", "quiet", "verbose"])
def test_what_a_render_prints_into_a_pipe(tmp_path: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "dit_accel", *RENDER, *SPARSE, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert not re.search(r"\r|\x1b|Loading|Traceback|\.py:\d+: \w+Warning", done.stderr)
    if options == ["--quiet"]:
        assert (done.stdout, lines) == ("", [])
        return
    parts = ("starting", "loading", "encoding", "denoising", "decoding", "writing", "warning: ")
    told = [line for line in lines if line.startswith(parts)]
    assert len(set(told)) == len(told)
    assert options or told == lines
    begun = [line for line in lines if re.match(r"(\w+ing)(?!.*:)", line) and line != "starting"]
    assert begun == [
        *("loading tiny-world", "encoding the prompt", "denoising", "decoding", "writing a.mp4")
    ]
    assert ("denoising: step 1 of 2" in done.stderr) or not options
    assert "a.mp4" in done.stdout
