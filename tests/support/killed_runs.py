"""Run commands in forks of a process that has everything loaded, and kill them after some seconds.

A fork starts at once, so every kill falls into the work and none into the imports. Speed-ups come from nothing that a
clock measures, so two runs can be equal. Requests and answers are lines of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

# Its thread might hold a lock during a fork.
tqdm.monitor_interval = 0

from diffusers import WanPipeline  # noqa: E402

from dit_accel import cli  # noqa: E402
from dit_accel_assets import tiny_world_path  # noqa: E402
from dit_accel_eval import paired_runner, recorder, report, runs  # noqa: E402
from dit_accel_eval.dense import DenseBackend  # noqa: E402
from dit_accel_eval.heads import run, sampling  # noqa: E402
from dit_accel_eval.tune import bench  # noqa: E402
from dit_accel_eval.tune import run as tune_run  # noqa: E402

LOADED = (report, run)


def prepare() -> None:
    """Load the model once for all forks, and replace what measures times."""
    pipe: Any = WanPipeline.from_pretrained(tiny_world_path())
    pipe.set_progress_bar_config(disable=True)
    for module in (paired_runner, sampling):
        module.load_pipeline = lambda *_: pipe
    for module in (runs, tune_run):
        module.fastest_dense = lambda *_: DenseBackend()
    recorder.reported_speedup = lambda *_: 1.5
    bench.speedup = lambda _, clip: 2 - clip.attention.density["all_calls"]


def run_command(arguments: list[str], folder: str, kill_after: float | None) -> dict[str, Any]:
    """Run a command in a fork, and return its exit code and its seconds. The code is None if it was killed."""
    assert threading.active_count() == 1
    begin = time.monotonic()
    process = os.fork()
    if process == 0:
        code = 3
        try:
            os.chdir(folder)
            for name in ("stdout", "stderr"):
                setattr(sys, name, Path(f"{folder}.{name}").open("w"))  # noqa: SIM115
            code = cli.main(arguments)
            sys.stdout.flush()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    return {"code": code, "seconds": time.monotonic() - begin}


if __name__ == "__main__":
    prepare()
    for line in sys.stdin:
        print(json.dumps(run_command(**json.loads(line))), flush=True)
