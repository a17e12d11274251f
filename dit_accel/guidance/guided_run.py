"""One guided run of a pipeline: what guidance learns about it, and its counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_accel.core.timer import Timer
from dit_accel.errors import RunFailed
from dit_accel.guidance.cache_checks import check_caches
from dit_accel.guidance.config import PerturbedGuidance
from dit_accel.guidance.noise import noise_levels
from dit_accel.guidance.pipeline_checks import describe_deviations
from dit_accel.hooks import BlockReuse
from dit_accel.hooks.active_pipeline import reported_guidance
from dit_accel.hooks.step_tracker import StepInfo
from dit_accel_pipelines import Family

# Terms of one step that are kept at a time, because each holds latents.
MOST_WINDOWS = 8


@dataclass
class StepDifferences:
    """Terms that were added to the conditional predictions of one step, one for each window of a long video.

    Attributes:
        step: The step.
        was_used: True once another prediction of the step used a term.
        entries: Latents of the conditional forwards, with their terms.
    """

    step: int = -1
    was_used: bool = False
    entries: deque[tuple[Tensor, Tensor]] = field(
        default_factory=partial(deque, maxlen=MOST_WINDOWS)
    )

    def begin(self, step: int) -> None:
        """Forget the terms if a conditional forward begins another step or the next window."""
        if step != self.step or self.was_used:
            self.step, self.was_used = step, False
            self.entries.clear()

    def add(self, latents: Tensor, difference: Tensor) -> None:
        """Store the term of a conditional forward."""
        self.entries.append((latents, difference))

    def find(self, latents: Tensor, shape: torch.Size) -> Tensor | None:
        """Return the term for another prediction of the same latents, or None if there is none."""
        self.was_used = True
        entries = [entry for entry in self.entries if entry[1].shape == shape]
        if len(entries) > 1:
            entries = [e for e in entries if e[0].shape == latents.shape and e[0].equal(latents)]
        return entries[0][1] if entries else None


@dataclass
class GuidedRun:
    """State of guidance for one run.

    Attributes:
        remarks: Deviations from guidance's formula, for the report.
        timer: Seconds of the clean and of the perturbed forwards.
        forwards: Number of guided forwards.
        shared_blocks: Number of blocks that the latest perturbed forward reused.
        in_vain: True once a perturbed forward could not perturb any attention. Later forwards are not guided.
        differences: Terms that were added to the step's conditional predictions.
        prefixes: Reusable leading blocks, by transformer.
    """

    remarks: set[str] = field(default_factory=set)
    timer: Timer = field(default_factory=Timer)
    forwards: int = 0
    shared_blocks: int = 0
    in_vain: bool = False
    differences: StepDifferences = field(default_factory=StepDifferences)
    prefixes: dict[nn.Module, BlockReuse] = field(default_factory=dict)
    _checked: set[nn.Module] = field(default_factory=set)
    _doubled_batches: dict[int, bool] = field(default_factory=dict)
    _noise_levels: list[float] = field(default_factory=list)
    _has_deviations: bool = False

    def check_transformer(self, transformer: nn.Module, settings: PerturbedGuidance) -> None:
        """Check once that a transformer's caches work with guidance.

        Raises:
            RunFailed: If one does not.
        """
        if transformer not in self._checked:
            self._checked.add(transformer)
            check_caches(transformer, settings)

    def is_doubled(self, hidden_states: Tensor, pipe: Any) -> bool:
        """Return True if a batch ``[B, ...]`` is [uncond, cond]. This is found out once for each batch size."""
        batch = hidden_states.shape[0]
        if batch not in self._doubled_batches:
            doubled = reported_guidance(pipe)
            if doubled is None:
                # In a loop of the user's own, both halves of a doubled batch hold the same latents.
                doubled = batch % 2 == 0 and torch.equal(*hidden_states.chunk(2))
            self._doubled_batches[batch] = doubled
        return self._doubled_batches[batch]

    def find_noise_level(self, step_info: StepInfo, pipe: Any) -> float:
        """Return the noise level of a step, from the scheduler of the pipeline.

        Raises:
            RunFailed: If there is no scheduler with timesteps, or if it has fewer timesteps than the run has steps.
        """
        if not self._noise_levels:
            scheduler = getattr(pipe, "scheduler", None)
            if getattr(scheduler, "timesteps", None) is None:
                raise RunFailed(
                    "adaptive guidance needs the timesteps of a pipeline's scheduler: leave adaptive out, or "
                    "enable guidance on the pipeline"
                )
            self._noise_levels += noise_levels(scheduler)
        count = len(self._noise_levels)
        if step_info.num_steps is not None and step_info.num_steps > count:
            raise RunFailed(
                f"adaptive guidance needs one noise level for each of {step_info.num_steps} steps, and the scheduler "
                f"has {count}, because frames start one after the other: leave adaptive out"
            )
        return self._noise_levels[step_info.in_schedule()[0]]

    def note_deviations(self, pipe: Any, family: Family) -> None:
        """Remark once on how a pipeline with classifier-free guidance changes the guided prediction."""
        if not self._has_deviations:
            self._has_deviations = True
            self.remarks.update(describe_deviations(pipe, family))

    def find_prefix(
        self, transformer: nn.Module, leading_blocks: Mapping[str, int], family: Family
    ) -> BlockReuse | None:
        """Return the leading blocks that the perturbed forward can reuse, or None.

        Args:
            transformer: The transformer that runs.
            leading_blocks: Number of blocks before the first perturbed one, by block list.
            family: Its family.
        """
        if transformer not in self.prefixes:
            skips = family.skip_connections
            self.prefixes[transformer] = BlockReuse(transformer, leading_blocks, skips)
        prefix = self.prefixes[transformer]
        refusal = prefix.refusal()
        if refusal is not None:
            self.remarks.add(
                f"the perturbed forward shares no blocks with the clean one: {refusal}"
            )
            return None
        return prefix if prefix.blocks else None

    def free_tensors(self) -> None:
        """Free the tensors of the run. The counts stay for the report."""
        self.differences = StepDifferences()
        for prefix in self.prefixes.values():
            prefix.forget()
