"""Decide for each attention call: sparse, dense by the schedule, or dense as a fallback with a reason.

Diffusers' pipelines and ComfyUI's models share this file.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dit_accel.core.precision import PrecisionResolver
from dit_accel.core.schedule import crossover_tokens
from dit_accel.methods import Dense, Method

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel.core.attention_call import AttentionCall, CallContext
    from dit_accel.methods import Attended
    from dit_accel.runtime.profile import Profile
    from dit_accel.runtime.run_state import Run
    from dit_accel_pipelines import TokenLayout


@dataclass(frozen=True, kw_only=True)
class CallFacts:
    """The facts that decide whether any method can handle an attention call.

    Attributes:
        tokens: Number of queries.
        keys: Number of keys.
        layout: Where the visual tokens are; None if unknown.
        other_batch: True if the text masks describe another number of samples than the call has.
        masked: True if the call has an attention mask.
        unreadable_mask: True if the mask is not a tensor, such as FlexAttention's BlockMask.
        causal: True for causal attention.
        in_forward: True if the call happens inside a forward of the transformer.
        joint: True if text tokens take part in the attention.
        most_tokens: Largest number of tokens of a call so far.
        other_dtype: True if no method can handle the dtype.
    """

    tokens: int
    keys: int
    layout: TokenLayout | None
    other_batch: bool = False
    masked: bool = False
    unreadable_mask: bool = False
    causal: bool = False
    in_forward: bool = True
    joint: bool = False
    most_tokens: int = 0
    other_dtype: bool = False


def _masked(facts: CallFacts) -> bool:
    """Return True if a mask matters: the token subsets of a layout leave out masked tokens already."""
    in_layout = facts.layout is not None and bool(facts.layout.subsets)
    return facts.masked and (facts.unreadable_mask or not in_layout)


def _mismatched(facts: CallFacts) -> bool:
    layout = facts.layout
    return layout is not None and layout.visual_tokens + layout.text_tokens != facts.tokens


OTHER_DTYPE = "attention in another dtype than float32, bfloat16 and float16"


def has_other_dtype(query: Tensor) -> bool:
    """Return True if no method can handle the dtype of a call."""
    return str(query.dtype) not in ("torch.float32", "torch.bfloat16", "torch.float16")


UNSUPPORTED: tuple[tuple[str, Callable[[CallFacts], bool]], ...] = (
    (
        "which tokens are text is not known for such inputs",
        lambda f: f.layout is None and f.joint and f.in_forward,
    ),
    (
        "fewer tokens than the largest attention has",
        lambda f: f.layout is None and f.tokens < f.most_tokens,
    ),
    ("text masks of another batch size", lambda f: f.other_batch),
    ("attention mask", _masked),
    (OTHER_DTYPE, lambda f: f.other_dtype),
    ("causal attention", lambda f: f.causal),
    ("queries and keys of different length", lambda f: f.tokens != f.keys),
    ("attention called outside the transformer's forward", lambda f: not f.in_forward),
    ("tokens do not match the grid of the transformer's input", _mismatched),
)
"""Reasons why no method can handle a call, in the order in which they are checked."""


def unsupported_reason(facts: CallFacts) -> str | None:
    """Return the first reason why no method can handle a call, or None."""
    return next((reason for reason, applies in UNSUPPORTED if applies(facts)), None)


@dataclass(frozen=True)
class Route:
    """The way that a call takes.

    Attributes:
        method: The method that runs, with the knobs of the matching rules; None if the call runs dense.
        reason: Why the call falls back to dense attention; None if the schedule makes it dense.
        observer: The method that prepares its state although the schedule makes the step dense.
    """

    method: Method | None = None
    reason: str | None = None
    observer: Method | None = None


class MethodRunner:
    """Routes attention calls by a profile, and runs its method.

    Args:
        profile: How attention runs.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.precisions = PrecisionResolver()
        self._methods: dict[tuple[int, ...], Method] = {}  # by the rules that match

    def route(
        self,
        context: CallContext,
        run: Run,
        *,
        tokens: int,
        has_grid: bool,
        min_tokens: int,
        dense_reason: str | None = None,
    ) -> Route:
        """Return the way of a call that a method can handle.

        Args:
            context: Where in the run the call happens.
            run: State of the run.
            tokens: Number of tokens of the call.
            has_grid: True if the visual tokens lie in a known grid.
            min_tokens: Calls with fewer tokens fall back to dense attention.
            dense_reason: Reason for dense attention that the caller knows, if any.
        """
        schedule = self.profile.schedule
        rules = schedule.matching_rules(context)
        is_dense = schedule.is_dense(context, rules)
        run.matched_rules |= schedule.used_rules(rules, dense=is_dense)
        run.matched_layers |= schedule.matching_layers(context)
        method = self._method_with(rules)
        if isinstance(method, Dense):
            return Route()
        route = Route(method)
        if dense_reason is not None:
            route = Route(reason=dense_reason)
        elif method.needs_grid and not has_grid:
            route = Route(reason=f"{method.name} needs tokens that lie in a grid")
        elif tokens < min_tokens:
            route = Route(method, f"fewer than {min_tokens} tokens")
        if not is_dense:
            return route
        observes = method.observes and route.reason is None and schedule.warms_up(context, rules)
        return Route(observer=method if observes else None)

    def min_tokens(self, device_type: str) -> int:
        """Return the schedule's ``min_tokens``, or the crossover of a device if it has none."""
        requested = self.profile.schedule.min_tokens
        return crossover_tokens(device_type) if requested is None else requested

    def run_method(
        self, call: AttentionCall, run: Run, method: Method, key: Hashable
    ) -> Attended | None:
        """Run a method on a call.

        Args:
            call: A call without padding.
            run: State of the run.
            method: The method of the call's route.
            key: What the method's state belongs to.

        Returns:
            The attention and its density, or None if the method prefers dense attention.
        """
        precision = self.precisions.resolve_sparse(self.profile.precision, call.query.device)
        call = replace(call, precision=precision)
        return method.attend(call, run.state_of(key, method), run.ops)

    def observe(self, call: AttentionCall, run: Run, method: Method, key: Hashable) -> None:
        """Let a method prepare its state in a dense step; the arguments are those of `run_method`."""
        method.observe(call, run.state_of(key, method), run.ops)

    def _method_with(self, rules: tuple[int, ...]) -> Method:
        """Return the method with the knobs of some rules; equal rules share one object."""
        if rules not in self._methods:
            self._methods[rules] = self.profile.at(rules)
        return self._methods[rules]
