"""One guided forward of a transformer: its part in guidance, its input rows and its output."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dit_accel.hooks import BlockReuse, RerunForward

Role = Literal["cond", "both", "other"]
"""Part of a clean forward in guidance. "cond" computes the conditional prediction, "both" computes [uncond, cond] in
one batch, and "other" reuses the difference that the step's "cond" forward computed.
"""


@dataclass
class GuidedForward:
    """One clean forward, and the perturbed forward that follows it.

    Attributes:
        role: Part of the clean forward in guidance, or None if it is not guided.
        device: Device of its input.
        scale: Weight of the difference.
        rows: Rows of the batch that hold the conditional prediction.
        prefix: Recorded outputs of the leading blocks, or None if the perturbed forward runs all blocks.
        perturbed_calls: Number of attention calls that were perturbed.
        is_running: True while the perturbed forward runs.
    """

    role: Role | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    scale: float = 0.0
    rows: slice = field(default_factory=lambda: slice(None))
    prefix: BlockReuse | None = None
    perturbed_calls: int = 0
    is_running: bool = False

    def run_perturbed(self, rerun: RerunForward, arguments: Mapping[str, Any]) -> Any:
        """Run the forward again with perturbed attention, with some of its arguments replaced."""
        self.is_running, self.perturbed_calls = True, 0
        try:
            with self.prefix.replaying(self.rows) if self.prefix else nullcontext():
                return rerun(arguments)
        finally:
            self.is_running = False
            if self.prefix is not None:
                self.prefix.forget()

    def select_arguments(
        self, arguments: Mapping[str, Any], batched: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return the conditional rows of the ``batched`` arguments; return nothing if all rows are conditional."""
        if self.rows == slice(None):
            return {}
        batch = arguments["hidden_states"].shape[0]
        return {
            name: select_rows(arguments[name], batch, self.rows)
            for name in batched
            if name in arguments
        }


def select_rows(value: Any, batch: int, rows: slice) -> Any:
    """Select rows of the batch in an argument: in tensors, in mappings and sequences of them, and in plain lists."""
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch:
        return value[rows]
    if isinstance(value, Mapping):
        return {key: select_rows(part, batch, rows) for key, part in value.items()}
    if isinstance(value, list) and len(value) == batch and not _has_tensor(value):
        return value[rows]
    if isinstance(value, list | tuple):
        return type(value)(select_rows(part, batch, rows) for part in value)
    return value


def _has_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor | Mapping)


def get_sample(output: Any) -> Tensor:
    """Return the prediction in a forward's output: a tensor, a tuple or a diffusers output."""
    # Kandinsky 5 returns a bare tensor.
    sample: Tensor = output if isinstance(output, Tensor) else output[0]
    return sample


def replace_sample(output: Any, sample: Tensor) -> Any:
    """Return a forward's output with another prediction."""
    if isinstance(output, Tensor):
        return sample
    if isinstance(output, tuple):
        return (sample, *output[1:])
    return type(output)(**{**output, "sample": sample})
