"""Commands started by PyTorch's launcher, on a clip so small that it costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys

SIZE = ["--height", "32", "--width", "32", "--frames", "5", "--steps", "1", "--guidance-scale", "1"]


def launched(count: int, script: list[str], arguments: list[str]) -> int:
    """The exit status of ``count`` processes of a script or of ``-m`` and a module."""
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
