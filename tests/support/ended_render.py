"""Run ``dit-accel render`` in a process that gets a signal while the encoder of its first clip starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from dit_accel import cli

SIGNAL = int(sys.argv[1])

# Background jobs of a shell inherit an ignored Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Popen(subprocess.Popen):
    """A process that sends the signal to its parent as soon as it is an encoder."""

    def __init__(self, command: Any, **options: Any) -> None:
        super().__init__(command, **options)
        # The check before the render encodes to nowhere.
        if "libx264" in command and "null" not in command:
            os.kill(os.getpid(), SIGNAL)


subprocess.Popen = Popen
sys.exit(cli.main(sys.argv[2:]))
