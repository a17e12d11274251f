"""This process among those that a launcher (torchrun, ``accelerate launch``) started together."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from dit_accel.errors import InvalidSettings
from dit_accel.generation.placement import LoadOptions

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """Processes share the requests, or each request (``ulysses`` of them).

    Attributes:
        rank: of this process among ``count``.
        local_rank: on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    ulysses: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes what it renders: of those that share a clip one does."""
        return self.ulysses == 1 or self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            PartialState().wait_for_everyone()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What is this process's to do."""
        return items if self.ulysses > 1 else items[self.rank :: self.count]

    def load_options(self, load_options: LoadOptions) -> LoadOptions:
        """On the device of this process, where the request names no single one."""
        if load_options.device == "cuda" and self.count > 1:
            return dataclasses.replace(load_options, device=f"cuda:{self.local_rank}")
        return load_options


def this_process(ulysses: int = 1) -> Process:
    """What the launcher says.

    Raises:
        InvalidSettings: if it did not start as many processes as are to share a clip.
    """
    if not distributed.is_available():
        return Process()
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if ulysses > 1 and launched and not distributed.is_initialized():
        # diffusers tells the sizes of shares from CPU to CPU where it can
        cuda = ",cuda:nccl" if torch.cuda.is_available() else ""
        distributed.init_process_group(f"cpu:gloo{cuda}")
    state = PartialState(cpu=not torch.cuda.is_available())
    if ulysses not in (1, state.num_processes):
        raise InvalidSettings(
            f"ulysses={ulysses} needs as many processes, here are {state.num_processes}: start with "
            f"torchrun --nproc-per-node {ulysses} -m dit_accel render ..."
        )
    return Process(state.process_index, state.num_processes, state.local_process_index, ulysses)
