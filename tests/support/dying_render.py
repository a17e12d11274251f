"""Run ``dit-accel render`` in a process that dies after its first clip if its rank is the first argument."""

from __future__ import annotations

import os
import sys
from typing import Any

from dit_accel import cli
from dit_accel.generation import batch

DYING_RANK = int(sys.argv[1])
original = batch.render_job
finished: list[Any] = []


def render_job(*arguments: Any, **options: Any) -> Any:
    finished.append(original(*arguments, **options))
    # The files of the first clip are written, its record is not.
    if len(finished) == 1 and int(os.environ.get("RANK", 0)) == DYING_RANK:
        os._exit(9)
    return finished[-1]


batch.render_job = render_job
sys.exit(cli.main(sys.argv[2:]))
