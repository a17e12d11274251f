"""Schedules, their rules, and the settings of the guard."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from dit_accel.errors import InvalidSettings
from dit_accel.io.parsing import check_types

if TYPE_CHECKING:
    from dit_accel.core.attention_call import CallContext


@dataclass(frozen=True)
class Rule:
    """Override knobs, or force dense, for the calls that match every given condition.

    Attributes:
        steps: Steps that match, such as ``"20%-90%"`` (a share of the steps, end excluded), ``"5-9"`` (counted
            from 0, end included), ``"5-"`` or ``"3"``. Commas separate several.
        layers: Layers that match, such as ``"0,47-49"``. Negative numbers count from the last layer.
        expert: Component name of the transformer, such as ``"transformer_2"``.
        branch: Name of the forward within a step, such as ``"cond"`` or ``"uncond"``.
        dense: True runs the matching calls dense.
        knobs: Knobs of the method for the matching calls. If two rules match, the later one wins.

    Raises:
        InvalidSettings: If ``steps`` or ``layers`` cannot be read, or if a dense rule has knobs.

    Example:
        >>> Rule(steps="0%-30%", knobs={"density": 0.3})
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # a misspelt key is an error

    steps: str | None = None
    layers: str | None = None
    expert: str | None = None
    branch: str | None = None
    dense: bool = False
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, "rule")
        for name in ("steps", "layers"):
            text = getattr(self, name)
            if text is not None and not _spans(text, percent=name == "steps"):
                shown = '"20%-90%", "5-9", "5-" or "3"' if name == "steps" else '"0,47-49" or "-1"'
                raise InvalidSettings(f"{name} must be written like {shown}, got {text!r}")
        if self.dense and self.knobs:
            raise InvalidSettings(
                f"{', '.join(self.knobs)} has no effect in a dense rule: leave dense or the knobs out"
            )

    @property
    def counts_steps(self) -> bool:
        """Return True if the rule can only be applied when the number of steps is known."""
        spans = _spans(self.steps or "", percent=True)
        return any(percent or first < 0 or (last or 0) < 0 for first, last, percent in spans)

    def matches(self, context: CallContext) -> bool:
        """Return True if the rule applies to a call.

        A share of the steps never matches while the number of steps is unknown.
        """
        return (
            (self.expert is None or self.expert == context.component)
            and (self.branch is None or self.branch == context.branch)
            and (self.layers is None or _contains(self.layers, context.layer, context.num_layers))
            and (self.steps is None or _contains(self.steps, context.step, context.num_steps))
        )


@dataclass(frozen=True)
class Schedule:
    """Settings for which attention calls stay dense and which use other knobs, for every method.

    Attributes:
        dense_steps: Share of the denoising steps that run dense. It counts from the first step that runs and is
            rounded up. A strength below 1 skips steps, and these do not count.
            SVG2 uses 0.2 to 0.3, because the first steps decide the layout of the video.
        dense_layers: Indices of layers that always run dense. Negative numbers count from the last layer.
        min_tokens: Calls with fewer tokens run dense, because sparse attention is slower there. None uses the
            crossover that was measured for the device.
        rules: Overrides by step, layer, expert or branch.

    Raises:
        InvalidSettings: If a value is out of range.

    Example:
        >>> Schedule(dense_steps=0.1, dense_layers=(0, -1), rules=(Rule(branch="uncond", dense=True),))
    """

    dense_steps: float = 0.2
    dense_layers: tuple[int, ...] = ()
    min_tokens: int | None = None
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        check_types(self, "schedule")
        if not 0.0 <= self.dense_steps <= 1.0:
            raise InvalidSettings(f"dense_steps must be in [0, 1], got {self.dense_steps}")
        if self.min_tokens is not None and self.min_tokens < 0:
            raise InvalidSettings(f"min_tokens must be 0 or more, got {self.min_tokens}")

    def step_is_dense(self, step: int, num_steps: int | None) -> bool:
        """Return True if a step, counted from 0, runs dense. No step does while their number is unknown."""
        if num_steps is None:
            return False
        return step < math.ceil(self.dense_steps * num_steps - 1e-9)

    def layer_is_dense(self, layer: int, num_layers: int) -> bool:
        """Return True if a layer always runs dense."""
        return layer in self.dense_layers or layer - num_layers in self.dense_layers

    def is_dense(self, context: CallContext, rules: tuple[int, ...]) -> bool:
        """Return True if a call runs dense, given the indices of the rules that match it."""
        return (
            self.step_is_dense(context.step, context.num_steps)
            or self.layer_is_dense(context.layer, context.num_layers)
            or any(self.rules[index].dense for index in rules)
        )

    def used_rules(self, rules: tuple[int, ...], *, dense: bool) -> set[int]:
        """Return those of the rules that match a call which have an effect on it: in dense calls, the dense ones."""
        return {index for index in rules if self.rules[index].dense or not dense}

    def matching_layers(self, context: CallContext) -> set[int]:
        """Return the entries of ``dense_layers`` that name the layer of a call."""
        return set(self.dense_layers) & {context.layer, context.layer - context.num_layers}

    def unmatched(self, rules: Collection[int], layers: Collection[int]) -> list[str]:
        """Return remarks on the rules and the dense layers that had no effect in a run, given those that had one."""
        remarks = [
            f"rule {index} of the schedule never matched a call"
            + ("" if rule.dense else " that is not dense")
            for index, rule in enumerate(self.rules)
            if index not in rules
        ]
        missing = [str(layer) for layer in self.dense_layers if layer not in layers]
        if missing:
            named = " or ".join(missing)
            remarks.append(f"no call that could be sparse had a layer {named} of dense_layers")
        return remarks

    def warms_up(self, context: CallContext, rules: tuple[int, ...]) -> bool:
        """Return True if a call runs dense only because its step does, so that later steps can be sparse."""
        return (
            self.step_is_dense(context.step, context.num_steps)
            and not self.layer_is_dense(context.layer, context.num_layers)
            and not any(self.rules[index].dense for index in rules)
        )

    def without_effect(self, num_steps: int | None) -> list[str]:
        """Return a remark on the settings that have no effect because the number of steps is unknown."""
        names = [f"dense_steps {self.dense_steps:g}"] if self.dense_steps else []
        names += [f"rule {i} ({r.steps})" for i, r in enumerate(self.rules) if r.counts_steps]
        if num_steps is not None or not names:
            return []
        return [
            f"the number of steps is unknown, so these settings had no effect: {', '.join(names)}. Enable attention "
            "on the pipeline, or run forwards in transformer.cache_context(name, step_index=i, num_inference_steps=n)"
        ]

    def all_dense(self, num_steps: int | None) -> str | None:
        """Return a remark if every step that runs is dense, or None."""
        if not num_steps or not self.step_is_dense(num_steps - 1, num_steps):
            return None
        steps = "the only step" if num_steps == 1 else f"all {num_steps} steps"
        return (
            f"{steps} ran dense, because dense_steps {self.dense_steps:g} is rounded up to whole steps: set "
            "dense_steps to 0, or use more steps"
        )

    def without_knobs(self) -> Schedule:
        """Return the schedule for another method: the rules lose their knobs."""
        return replace(self, rules=tuple(replace(rule, knobs={}) for rule in self.rules))

    def matching_rules(self, context: CallContext) -> tuple[int, ...]:
        """Return the indices of the rules that match a call."""
        return tuple(i for i, rule in enumerate(self.rules) if rule.matches(context))


GuardMode = Literal["off", "warn", "on"]


@dataclass(frozen=True)
class Guard:
    """Settings for sparse output that is not finite, or far from exact attention.

    Attributes:
        mode: ``"off"`` checks nothing. ``"warn"`` counts faults and warns. ``"on"`` runs a forward again, dense, if
            its output is not finite. It also runs faulty layers dense until the run ends.
        limit: Largest relative error that is accepted, in the L2 norm over the sampled queries.
        samples: Number of queries per call that are computed exactly. They are spread over the sequence, in every
            other head.

    Raises:
        InvalidSettings: If a value is out of range.
    """

    mode: GuardMode = "off"
    limit: float = 0.5
    samples: int = 16

    def __post_init__(self) -> None:
        check_types(self, "guard")
        if self.mode not in get_args(GuardMode):
            raise InvalidSettings(f"guard must be off, warn or on, got {self.mode!r}")
        if not 0 < self.limit < math.inf:
            raise InvalidSettings(f"guard limit must be above 0, and finite, got {self.limit}")
        if self.samples < 1:
            raise InvalidSettings(f"guard samples must be at least 1, got {self.samples}")
        for name in ("limit", "samples"):
            if self.mode == "off" and getattr(self, name) != getattr(Guard, name):
                raise InvalidSettings(
                    f"guard {name} has no effect with guard off: set guard to warn or on"
                )


_SPAN = re.compile(r"(-?\d+)(%?)(?:(-)(?:(-?\d+)(%?))?)?")


def numbers_in(text: str) -> list[int]:
    """Return the numbers that a text such as ``"0,47-49"`` names."""
    spans = _spans(text, percent=False)
    return [n for first, last, _ in spans for n in (first, last) if n is not None]


@functools.cache
def _spans(text: str, percent: bool) -> tuple[tuple[int, int | None, bool], ...]:
    """Parse a text into (first, last or None if open, is a percentage); empty if the text is invalid."""
    spans = []
    for part in text.replace(" ", "").split(","):
        match = _SPAN.fullmatch(part)
        if match is None:
            return ()
        first, first_percent, dash, last, last_percent = match.groups()
        if (first_percent or last_percent) and not percent:
            return ()
        if last is not None and bool(first_percent) != bool(last_percent):
            return ()
        if first_percent and dash is None:
            return ()
        if first_percent and not 0 <= int(first) <= int(last or 100) <= 100:
            return ()  # a share lies in the run
        end = int(last) if last is not None else (None if dash else int(first))
        if end is not None and (end < 0) == (int(first) < 0) and end < int(first):
            return ()  # backwards
        spans.append((int(first), end, bool(first_percent)))
    return tuple(spans)


def _contains(text: str, index: int, count: int | None) -> bool:
    """Return True if an index, of ``count`` in all, lies in the spans of a text."""
    for first, last, percent in _spans(text, percent=True):
        if percent:
            if count is None:
                continue
            end = math.inf if last is None or last >= 100 else last * count / 100
            if first * count / 100 - 1e-9 <= index < end - 1e-9:
                return True
        else:
            low, high = _from_end(first, count), _from_end(last, count)
            if low is not None and low <= index <= (math.inf if last is None else (high or 0)):
                return True
    return False


def _from_end(index: int | None, count: int | None) -> int | None:
    if index is None or index >= 0:
        return index
    return index + count if count is not None else None


# Measured; other devices have no crossover. A CPU has one for compiled kernels and one for plain products. On an
# H200, an svg-ear layer at density 0.15 would equal dense attention at about 14,000 tokens with 40 heads and at
# about 22,000 with 12, by its parts at 32,760 and 75,600 tokens.
CPU_CROSSOVER, CPU_CROSSOVER_OF_PRODUCTS, CUDA_CROSSOVER = 768, 2048, 16_384


def crossover_tokens(device_type: str) -> int:
    """Return the number of tokens below which sparse attention is slower than dense on a type of device."""
    if device_type == "cpu":
        from dit_accel_kernels.cpu.compiled import load_library  # it loads torch

        compiled = not isinstance(load_library(), str)
        return CPU_CROSSOVER if compiled else CPU_CROSSOVER_OF_PRODUCTS
    return CUDA_CROSSOVER if device_type == "cuda" else 0
