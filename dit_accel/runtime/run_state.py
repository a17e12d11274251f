"""State of one run and of one forward. Both are thrown away whole, so nothing is reset by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from dit_accel.core.ops import Ops
from dit_accel.core.precision import PrecisionResolver
from dit_accel.runtime.cost_model import SlowdownAdvisor
from dit_accel.runtime.guard import GuardMonitor
from dit_accel.runtime.report import RunStats

if TYPE_CHECKING:
    from dit_accel.hooks.layout_cache import LayoutCache
    from dit_accel.hooks.root_hook import ForwardCall
    from dit_accel.hooks.step_tracker import StepInfo
    from dit_accel.methods import Method
    from dit_accel.runtime.profile import Profile
    from dit_accel_pipelines import TokenLayout

PERTURBED = "perturbed"
"""Branch of the perturbed forwards of guidance."""


class StateKey(NamedTuple):
    """Key of a method's state.

    Attributes:
        layer: Id of the layer.
        stream: Forwards, one a step, that denoise one sample in one branch.
        perturbed: True in the perturbed forwards of guidance.
        call: Number of the layer's call in the forward.
        sample: Index of the sample in the batch.
        shape: Shape of its query.
    """

    layer: int
    stream: Hashable
    perturbed: bool
    call: int
    sample: int
    shape: tuple[int, ...]


class Run:
    """State of one run: one call of a pipeline, or one denoising loop.

    Args:
        profile: How attention runs.
        layouts: Cache of the run's token layouts; None if the caller finds layouts itself.
        precisions: Precisions that run on the device.

    Attributes:
        stats: Counters for the report.
        ops: The ops that methods call.
        guard: The faults that were found.
        advisor: The warnings about sizes at which sparse attention is slow.
        states: State of the method by (layer, branch, shape).
        matched_rules: Indices of the schedule's rules that matched a call, and those with knobs one that is not dense.
        matched_layers: Entries of the schedule's ``dense_layers`` that named the layer of a call.
        most_tokens: Largest number of tokens of a call, for families whose layout is unknown.
        num_steps: Number of denoising steps, as the latest forward reported it.
        under_cache_dit: True if cache-dit, which is not ours, caches blocks.
    """

    def __init__(
        self,
        profile: Profile,
        layouts: LayoutCache | None = None,
        precisions: PrecisionResolver | None = None,
    ) -> None:
        self.profile, self.layouts = profile, layouts
        self.precisions = precisions or PrecisionResolver()
        self.stats = RunStats()
        self.ops = Ops(self.stats.timer, self.stats.plans)
        self.guard = GuardMonitor(profile.guard)
        self.advisor = SlowdownAdvisor()
        self.states: dict[Hashable, Any] = {}
        self.matched_rules: set[int] = set()
        self.matched_layers: set[int] = set()
        self.most_tokens = 0
        self.num_steps: int | None = None
        self.under_cache_dit = False

    def state_of(self, key: Hashable, method: Method) -> Any:
        """Return the state of a method under a key; the first call makes it."""
        if key not in self.states:
            self.states[key] = method.new_state()
        return self.states[key]

    def find_layout(self, branch: str, call: ForwardCall, degree: int) -> TokenLayout | None:
        """Return where the visual tokens of a forward are; None if unknown or if the caller finds layouts itself."""
        return self.layouts.get(branch, call, degree) if self.layouts else None

    def end_streams(self, streams: Collection[Hashable]) -> None:
        """Free the states of streams that will not be continued."""
        for key in list(self.states) if streams else ():
            if isinstance(key, StateKey) and key.stream in streams:
                del self.states[key]

    def free(self) -> None:
        """Free the memory of the run. Its counters stay for the report."""
        self.states.clear()
        self.ops.clear()


@dataclass(frozen=True)
class Forward:
    """State of one forward of a transformer.

    Attributes:
        step_info: Position in the denoising loop.
        layout: Where the visual tokens are; None if unknown.
        dense_reason: Why every call of the forward runs dense; None if it does not.
        calls: Number of calls so far by layer. Some families call a layer once for each sample.
    """

    step_info: StepInfo
    layout: TokenLayout | None
    dense_reason: str | None = None
    calls: Counter[int] = field(default_factory=Counter)

    def again_dense(self) -> Forward:
        """Return the state for running the same forward again, dense."""
        return replace(self, dense_reason="guard: this forward ran again", calls=Counter())
