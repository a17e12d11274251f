"""The base of all methods: a frozen dataclass of knobs that turns an attention call into a plan."""

from __future__ import annotations

import abc
import functools
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops
from dit_accel.errors import InvalidSettings
from dit_accel.io.parsing import check_knobs
from dit_accel_kernels import with_dense_tokens

if TYPE_CHECKING:
    from torch import Tensor


class Attended(NamedTuple):
    """The attention of a call.

    Attributes:
        out: Output ``[B, S, H, D]``.
        density: Share of the (query, key) pairs that were computed, a float32 scalar on the device.
    """

    out: Tensor
    density: Tensor


@dataclass
class MethodState:
    """State of a method for one (layer, branch, shape), until the run ends.

    Attributes:
        made: The plan that can still be used.
        step: The step in which it was made.
        by: The method that made it, with its knobs.
    """

    made: Plan | None = None
    step: int = 0
    by: Method | None = None


@dataclass(frozen=True)
class Method(abc.ABC):
    """Base of all methods. Subclasses are frozen dataclasses whose fields are the knobs.

    Class attributes:
        name: Name on the command line and in tables.
        source: Paper or project that the method comes from.
        static: True if a plan depends on shapes alone, so that all layers, branches and steps share it.
        spatial: True if a plan depends on where tokens lie in the grid.
        fine: True if groups hold so few tokens that the pairs outside a plan take far longer than dense attention.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    static: ClassVar[bool] = False
    spatial: ClassVar[bool] = False
    fine: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Check the types of all knobs before a subclass's own checks, which compare values."""
        super().__init_subclass__()
        own_checks = cls.__dict__.get("__post_init__")
        if own_checks is not None:

            @functools.wraps(own_checks)
            def check(self: Method) -> None:
                Method.__post_init__(self)
                own_checks(self)

            cls.__post_init__ = check  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check_knobs(self, f"{self.name} knob")

    @property
    def needs_grid(self) -> bool:
        """Return True if a call must run dense when its tokens lie in no grid."""
        return self.spatial

    def nested_methods(self) -> dict[str, Method]:
        """Return the methods that knobs hold or name, by the name of the knob."""
        knobs = {knob.name: getattr(self, knob.name) for knob in fields(self)}
        return {name: value for name, value in knobs.items() if isinstance(value, Method)}

    @property
    def observes(self) -> bool:
        """Return True if the dense steps of the schedule also prepare the method's state, by `observe`."""
        return False

    def observe(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        """Prepare the state in a dense step, for the sparse steps that follow."""
        raise NotImplementedError(f"{self.name} does not observe dense steps")

    def new_state(self) -> Any:
        """Return fresh state for one (layer, branch, shape). It lives until the run ends."""
        return MethodState()

    def plan_steps(self) -> int:
        """Return the number of steps that use one plan, for a method that is not static."""
        return 1

    @abc.abstractmethod
    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan | None:
        """Make a plan for a call over visual tokens alone; None means that dense attention is better."""

    def plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan | None:
        """Return the current plan, or make a new one. It covers all tokens, and text stays dense."""
        if self.static:
            key = (self, call.layout, call.query.shape, call.query.device)
            ops.count_plan(reused=ops.has_shared(key))
            return ops.shared(key, lambda: self._full_plan(call, state, ops))
        usable = state.by is self and call.context.step - state.step < self.plan_steps()
        ops.count_plan(reused=state.made is not None and usable)
        if state.made is not None and usable:
            made: Plan = state.made
            return made
        plan = self._full_plan(call, state, ops)
        reusable = self.plan_steps() > 1  # plans of all layers can take gigabytes
        state.made = plan if reusable else None
        state.step, state.by = call.context.step, self
        return plan

    def _full_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan | None:
        plan = with_text(self.new_plan(call.visual(), state, ops), call)
        return plan and replace(plan, density=ops.density(plan.block_map))

    def attend(self, call: AttentionCall, state: Any, ops: Ops) -> Attended | None:
        """Return the attention of a call; None means that dense attention is better."""
        plan = self.plan(call, state, ops)
        if plan is None:
            return None
        assert plan.density is not None
        return Attended(ops.run(plan, call), plan.density)


@dataclass(frozen=True, kw_only=True)
class Refreshed(Method):
    """A method whose plans depend on queries and keys.

    Attributes:
        refresh: Number of steps that use one plan. With 1, every step makes a new plan.
    """

    refresh: int = 1

    def __post_init__(self) -> None:
        check_count("refresh", self.refresh)

    def plan_steps(self) -> int:
        return self.refresh


def with_text(plan: Plan | None, call: AttentionCall) -> Plan | None:
    """Extend a plan over visual tokens by the call's text. All queries attend to text, and text to all keys."""
    layout = call.layout
    if plan is None or not layout.text_tokens:
        return plan
    extended = with_dense_tokens(plan.block_map, layout.text_tokens, layout.text_first)
    return replace(plan, block_map=extended)


def check_share(name: str, value: float, *, above: float | None = None) -> None:
    """Raise InvalidSettings unless a knob lies in [0, 1], or in (0, 1] with ``above=0``."""
    check_number(name, value)
    low = "(0" if above == 0 else "[0"
    if not (0.0 <= value <= 1.0) or value == above:
        raise InvalidSettings(f"{name} must be in {low}, 1], got {value}")


def refuse_idle(method: Method, names: Collection[str], reason: str) -> None:
    """Raise InvalidSettings if a knob that has no effect differs from its default.

    Args:
        method: Method whose knobs are checked.
        names: Knobs that have no effect beside the others.
        reason: What takes their effect away, and what to do, such as ``"with mode paper: set mode to merge"``.
    """
    for knob in fields(method):
        if knob.name in names and getattr(method, knob.name) != knob.default:
            raise InvalidSettings(f"{knob.name} has no effect {reason}")


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Raise InvalidSettings unless a knob lies in [low, high]."""
    check_number(name, value)
    if not low <= value <= high:
        raise InvalidSettings(f"{name} must be in [{low:g}, {high:g}], got {value}")


def check_count(name: str, value: int) -> None:
    """Raise InvalidSettings unless a knob is at least 1."""
    check_number(name, value)
    if value < 1:
        raise InvalidSettings(f"{name} must be at least 1, got {value}")


def check_number(name: str, value: object) -> None:
    """Raise InvalidSettings unless a knob is a number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InvalidSettings(f"{name} must be a number, got {value!r}")
