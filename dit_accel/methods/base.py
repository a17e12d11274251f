"""What a method is: a frozen dataclass of knobs that turns an attention call into a plan."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops
from dit_accel_kernels import with_dense_tokens

if TYPE_CHECKING:
    from torch import Tensor


class Attended(NamedTuple):
    """Attention of a call, ``[B, S, H, D]``, and the share of (query, key) pairs that was computed,
    float32 scalar on the device.
    """

    out: Tensor
    density: Tensor


@dataclass
class MethodState:
    """Memory of a method for one (transformer, layer, branch, shape), until the run ends: the plan that
    is still good, the step it was made in, and the method, with its knobs, that made it.
    """

    made: Plan | None = None
    step: int = 0
    by: Method | None = None


@dataclass(frozen=True)
class Method(abc.ABC):
    """Base of all methods. Subclasses are frozen dataclasses; their fields are the knobs.

    Attributes:
        name: how the command line and the table of methods call it.
        source: where it comes from.
        static: a plan depends on shapes alone; one serves all layers, branches and steps.
        spatial: a plan depends on where tokens are in the grid.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    static: ClassVar[bool] = False
    spatial: ClassVar[bool] = False

    @property
    def needs_grid(self) -> bool:
        """Whether tokens that lie in no grid keep a call dense."""
        return self.spatial

    def new_state(self) -> Any:
        """Fresh memory for one (transformer, layer, branch, shape); it lives until the run ends."""
        return MethodState()

    def plan_steps(self) -> int:
        """How many steps a plan serves, of a method that is not static."""
        return 1

    @abc.abstractmethod
    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan | None:
        """Decide what to compute of a call over visual tokens alone; None: nothing better than dense."""

    def plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan | None:
        """The plan that is still good, or a new one, over all tokens: text stays dense."""
        if self.static:
            key = (self, call.layout, call.query.shape, call.query.device)
            ops.count_plan(reused=ops.has_shared(key))
            return ops.shared(key, lambda: self._whole(call, state, ops))
        fresh = state.by is self and call.context.step - state.step < self.plan_steps()
        ops.count_plan(reused=state.made is not None and fresh)
        if state.made is not None and fresh:
            return state.made
        plan = self._whole(call, state, ops)
        kept = self.plan_steps() > 1  # plans of all layers can be gigabytes
        state.made, state.step, state.by = (plan if kept else None), call.context.step, self
        return plan

    def _whole(self, call: AttentionCall, state: Any, ops: Ops) -> Plan | None:
        plan = with_text(self.new_plan(call.visual(), state, ops), call)
        return plan and replace(plan, density=ops.density(plan.block_map))

    def attend(self, call: AttentionCall, state: Any, ops: Ops) -> Attended | None:
        """Attention of a call; None: it is better dense."""
        plan = self.plan(call, state, ops)
        if plan is None:
            return None
        assert plan.density is not None
        return Attended(ops.run(plan, call), plan.density)


@dataclass(frozen=True, kw_only=True)
class Refreshed(Method):
    """A method whose plans follow queries and keys.

    Attributes:
        refresh: a plan serves this many steps; 1: it is made anew at every step.
    """

    refresh: int = 1

    def __post_init__(self) -> None:
        check_count("refresh", self.refresh)

    def plan_steps(self) -> int:
        return self.refresh


def with_text(plan: Plan | None, call: AttentionCall) -> Plan | None:
    """A plan over visual tokens, extended by the call's text: every query sees it, it sees every key."""
    layout = call.layout
    if plan is None or not layout.text_tokens:
        return plan
    grown = with_dense_tokens(plan.block_map, layout.text_tokens, layout.text_first)
    return replace(plan, block_map=grown)


def check_share(name: str, value: float, *, above: float | None = None) -> None:
    """ValueError unless a knob is a share in [0, 1], or in (0, 1] with ``above=0``."""
    low = "(0" if above == 0 else "[0"
    if not (0.0 <= value <= 1.0) or value == above:
        raise ValueError(f"{name} must be in {low}, 1], got {value}")


def check_count(name: str, value: int) -> None:
    """ValueError unless a knob is at least 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
