"""Settings that are not a method's own: when to be sparse, and what to watch."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args


@dataclass(frozen=True)
class CallContext:
    """Where in a run an attention call is.

    Attributes:
        step, num_steps: denoising step counted from 0; num_steps is None where nothing tells it.
        layer, num_layers: index of the attention among those of its transformer.
        expert: component name of the transformer (one of `COMPONENTS`).
        branch: which forward of the step (``"cond"``, ``"uncond"``, ...).
    """

    step: int
    num_steps: int | None
    layer: int
    num_layers: int
    expert: str
    branch: str


@dataclass(frozen=True)
class Rule:
    """Other knobs, or no sparsity, for some of the calls: those that fit all that is given.

    Attributes:
        steps: ``"20%-90%"`` (a share of the steps, the end excluded), ``"5-9"`` (steps counted from
            0, the end included), ``"5-"``, ``"3"``, or several separated by commas.
        layers: ``"0,47-49"``; negative ones count from the last.
        expert: component name of the transformer.
        branch: ``"cond"``, ``"uncond"``, ...
        dense: such calls run dense.
        knobs: knobs of the method that differ for such calls; of two rules the later one wins.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # a misspelt key is an error

    steps: str | None = None
    layers: str | None = None
    expert: str | None = None
    branch: str | None = None
    dense: bool = False
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "layers"):
            text = getattr(self, name)
            if text is not None and not _spans(text, percent=name == "steps"):
                shown = '"20%-90%", "5-9", "5-" or "3"' if name == "steps" else '"0,47-49" or "-1"'
                raise ValueError(f"{name} must be written like {shown}, got {text!r}")

    @property
    def counts_steps(self) -> bool:
        """Whether the rule says something of steps that only their number makes clear."""
        spans = _spans(self.steps or "", percent=True)
        return any(percent or first < 0 or (last or 0) < 0 for first, last, percent in spans)

    def fits(self, place: CallContext) -> bool:
        """Whether the rule holds at a place; a share of an unknown number of steps never does."""
        return (
            (self.expert is None or self.expert == place.expert)
            and (self.branch is None or self.branch == place.branch)
            and (self.layers is None or _contains(self.layers, place.layer, place.num_layers))
            and (self.steps is None or _contains(self.steps, place.step, place.num_steps))
        )


@dataclass(frozen=True)
class Schedule:
    """Which attention calls stay dense, whatever the method, and where its knobs differ.

    Attributes:
        dense_steps: share of the denoising steps, counted from the first and rounded up, that run
            dense (SVG2 runs 20 to 30 % of them so: the layout of the video is decided there).
        dense_layers: indices of layers that always run dense; negative ones count from the last.
        min_tokens: below this many tokens a call runs dense, because sparse attention cannot pay
            there; None takes the crossover measured for the device.
        rules: what differs by step, layer, expert or branch.
    """

    dense_steps: float = 0.2
    dense_layers: tuple[int, ...] = ()
    min_tokens: int | None = None
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.dense_steps <= 1.0:
            raise ValueError(f"dense_steps must be in [0, 1], got {self.dense_steps}")
        if self.min_tokens is not None and self.min_tokens < 0:
            raise ValueError(f"min_tokens must be 0 or more, got {self.min_tokens}")

    def step_is_dense(self, step: int, num_steps: int | None) -> bool:
        """Whether a step (counted from 0) is among the dense ones; with an unknown number of steps
        none is.
        """
        if num_steps is None:
            return False
        return step < math.ceil(self.dense_steps * num_steps - 1e-9)

    def layer_is_dense(self, layer: int, num_layers: int) -> bool:
        """Whether a layer, counted from the first or from the last, is one of those that stay dense."""
        return layer in self.dense_layers or layer - num_layers in self.dense_layers

    def is_dense(self, place: CallContext, rules: tuple[int, ...]) -> bool:
        """Whether a call runs dense, at a place where some rules hold."""
        return (
            self.step_is_dense(place.step, place.num_steps)
            or self.layer_is_dense(place.layer, place.num_layers)
            or any(self.rules[index].dense for index in rules)
        )

    def without_effect(self, num_steps: int | None) -> list[str]:
        """A remark on what an unknown number of steps leaves without effect."""
        names = [f"dense_steps {self.dense_steps:g}"] if self.dense_steps else []
        names += [f"rule {i} ({r.steps})" for i, r in enumerate(self.rules) if r.counts_steps]
        if num_steps is not None or not names:
            return []
        return [
            f"nothing tells the number of steps, so that this had no effect: {', '.join(names)}. Enable it on "
            "the pipeline, or run forwards in transformer.cache_context(name, step_index=i, num_inference_steps=n)"
        ]

    def without_knobs(self) -> Schedule:
        """The same for another method: rules keep what is dense, and lose the knobs."""
        return replace(self, rules=tuple(replace(rule, knobs={}) for rule in self.rules))

    def rules_at(self, place: CallContext) -> tuple[int, ...]:
        """Indices of the rules that hold at a place."""
        return tuple(i for i, rule in enumerate(self.rules) if rule.fits(place))


GuardMode = Literal["off", "warn", "on"]


@dataclass(frozen=True)
class Guard:
    """What to do about sparse output that is NaN or infinite, or far from exact attention.

    Attributes:
        mode: ``"off"``: nothing is looked at. ``"warn"``: faults are counted and told. ``"on"``: a
            forward with output that is not finite runs again, dense; that layer, and one whose error
            was above the limit, runs dense from the next forward on, until the run ends.
        limit: largest relative error of the sampled queries' output, in the L2 norm over all of them.
        samples: queries per call that are computed exactly, spread over the sequence, in every other
            head.
    """

    mode: GuardMode = "off"
    limit: float = 0.5
    samples: int = 16

    def __post_init__(self) -> None:
        if self.mode not in get_args(GuardMode):
            raise ValueError(f"guard must be off, warn or on, got {self.mode!r}")
        if not self.limit > 0:
            raise ValueError(f"guard limit must be above 0, got {self.limit}")
        if self.samples < 1:
            raise ValueError(f"guard samples must be at least 1, got {self.samples}")


_SPAN = re.compile(r"(-?\d+)(%?)(?:(-)(?:(-?\d+)(%?))?)?")


@functools.cache
def _spans(text: str, percent: bool) -> tuple[tuple[int, int | None, bool], ...]:
    """First, last (None: open) and whether in percent, of each part; empty for a text that is wrong."""
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
        end = int(last) if last is not None else (None if dash else int(first))
        if end is not None and (end < 0) == (int(first) < 0) and end < int(first):
            return ()  # backwards
        spans.append((int(first), end, bool(first_percent)))
    return tuple(spans)


def _contains(text: str, index: int, count: int | None) -> bool:
    """Whether an index of ``count`` is in the spans of a text."""
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


CROSSOVER_TOKENS = {"cpu": 2048}  # measured; a device without an entry has no crossover


def crossover_tokens(device_type: str) -> int:
    """Number of tokens below which sparse attention does not pay on a kind of device."""
    return CROSSOVER_TOKENS.get(device_type, 0)
