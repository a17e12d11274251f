"""Start commands with PyTorch's launcher, on a clip so small that it costs little."""

from __future__ import annotations

import os
import subprocess
import sys

SIZE = ["--height", "32", "--width", "32", "--frames", "5", "--steps", "1", "--guidance-scale", "1"]


def launch(count: int, script: list[str], arguments: list[str]) -> int:
    """Run a script, or ``-m`` and a module, in several processes, and return the launcher's exit status."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode
