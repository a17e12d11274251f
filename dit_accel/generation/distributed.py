"""Describe this process among those that a launcher (torchrun, ``accelerate launch``) started together."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

from dit_accel.errors import InvalidSettings
from dit_accel.generation.placement import LoadOptions

T = TypeVar("T")

# How long a process waits for others that render clips of their own.
LONGEST_WAIT = timedelta(days=1)


@dataclass(frozen=True)
class Process:
    """One of the processes that a launcher started together.

    Processes split the prompts, or split each clip if ``ulysses > 1``.

    Attributes:
        rank: index of this process, 0 to ``count - 1``.
        count: number of processes.
        local_rank: index of this process on its machine.
        ulysses: number of processes that split each clip.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    ulysses: int = 1

    @property
    def writes(self) -> bool:
        """Return True if this process writes the clips it renders; of those that split a clip only the first does."""
        return self.ulysses == 1 or self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items that this process works on."""
        return items if self.ulysses > 1 else items[self.rank :: self.count]

    def load_options(self, load_options: LoadOptions) -> LoadOptions:
        """Return load options with this process's own GPU in place of ``cuda``."""
        if load_options.device == "cuda" and self.count > 1:
            return dataclasses.replace(load_options, device=f"cuda:{self.local_rank}")
        return load_options


def this_process(ulysses: int = 1) -> Process:
    """Return this process as the launcher describes it.

    Args:
        ulysses: number of processes that split each clip.

    Raises:
        InvalidSettings: if the launcher did not start ``ulysses`` processes.
    """
    from accelerate import PartialState
    from torch import distributed

    if not distributed.is_available():
        return Process()
    is_launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if ulysses > 1 and is_launched and not distributed.is_initialized():
        # diffusers exchanges the sizes of shares from CPU to CPU if that backend is initialized.
        cuda = ",cuda:nccl" if torch.cuda.is_available() else ""
        distributed.init_process_group(f"cpu:gloo{cuda}")
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    if ulysses not in (1, state.num_processes):
        raise InvalidSettings(
            f"ulysses={ulysses} needs as many processes, but {state.num_processes} are running: start with "
            f"torchrun --nproc-per-node {ulysses} -m dit_accel render ..."
        )
    return Process(state.process_index, state.num_processes, state.local_process_index, ulysses)
