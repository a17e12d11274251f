"""``dit-accel render`` in a process that gets a signal while the encoder of its first clip is being started."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from dit_accel import cli

NUMBER = int(sys.argv[1])


class Popen(subprocess.Popen):
    def __init__(self, command: Any, **options: Any) -> None:
        super().__init__(command, **options)
        if "libx264" in command:
            os.kill(os.getpid(), NUMBER)


subprocess.Popen = Popen
sys.exit(cli.main(sys.argv[2:]))
