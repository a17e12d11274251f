"""Choose the next setting to try: each lever alone to the target, then levers joined and shrunk, 8 bits last.

The speed-ups of levers multiply, and their errors are predicted to add up. Joint settings that were measured correct
the sum. Beyond these settings, Optuna's sampler refines.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from dit_accel_eval.tune.goal import AMPLE, read_measurements
from dit_accel_eval.tune.ladders import NONE, Ladder
from dit_accel_eval.tune.targets import Target

if TYPE_CHECKING:
    from dit_accel_eval.tune.search import Search

Parameters = dict[str, Any]

# Number of joint settings that are predicted and measured.
MOST_JOINT = 12
# A cliff: the next step has this many times the error that the target allows.
CLIFF = 4.0
JOINED = ("attention", "cache", "compile")


@dataclass(frozen=True)
class Effect:
    """Speed-up and errors of a setting, measured or predicted.

    Attributes:
        parameters: Parameters that the setting changes.
        log_speedup: Logarithm of the speed-up.
        losses: Error for each target, at the worse end of its interval.
    """

    parameters: Parameters = field(default_factory=dict)
    log_speedup: float = 0.0
    losses: tuple[float, ...] = ()


@dataclass
class Plan:
    """The next settings of a search, from the trials so far."""

    search: Search

    def __post_init__(self) -> None:
        trials = self.search.study.get_trials(deepcopy=False)
        alive = [t for t in trials if t.state != TrialState.FAIL]
        self.by_parameters = {key_of(parameters_of(t)): t for t in alive}
        self.ladders = self.search.space.ladders()

    @property
    def targets(self) -> tuple[Target, ...]:
        """Return the targets whose errors are predicted, PSNR if there are none."""
        return self.search.goal.targets or (Target("psnr", True, 0.0),)

    def next_parameters(self) -> Parameters | None:
        """Return the parameters to try next, or None if the sampler may choose."""
        return self.next_alone() or self.next_joint() or self.next_8_bits()

    def next_alone(self) -> Parameters | None:
        """Return the next step of a ladder that is halved until a step holds and its neighbour does not.

        The ladder with the fewest trials comes first: a short search tries every lever.
        """
        for ladder in sorted(self.ladders, key=self.count_tried):
            low, high = -1, len(ladder.steps)
            for index in range(len(ladder.steps)):
                trial = self.find(ladder.steps[index])
                if trial is None or not trial.state.is_finished():
                    continue
                if self.may_be_bolder(trial):
                    low = max(low, index)
                else:
                    high = min(high, index)
            if high - low > 1:
                middle = (low + high) // 2
                if self.find(ladder.steps[middle]) is None:
                    return self.complete(ladder.steps[middle])
        return None

    def count_tried(self, ladder: Ladder) -> int:
        """Return how many steps of a ladder have a trial."""
        return sum(self.find(step) is not None for step in ladder.steps)

    def next_joint(self) -> Parameters | None:
        """Return the untried joint setting that is predicted to be the best and to hold."""
        tried = [(self.find(effect.parameters), effect) for effect in self.predicted()]
        if sum(trial is not None for trial, _ in tried) >= MOST_JOINT:
            return None
        correction = self.correction(tried)
        winners = self.search.winners()
        best = self.value(self.effect(winners[0])) if winners else -math.inf
        candidates = [
            (self.value(effect), effect)
            for trial, effect in tried
            if trial is None and self.is_allowed(effect, correction)
        ]
        value, effect = max(candidates, key=lambda row: row[0], default=(-math.inf, Effect()))
        return self.complete(effect.parameters) if value > best else None

    def correction(self, tried: Sequence[tuple[FrozenTrial | None, Effect]]) -> float:
        """Return how many times the predicted errors the joint settings had that were measured."""
        factors = []
        for trial, predicted in tried:
            if trial is None or "measured" not in trial.user_attrs:
                continue
            pairs = zip(self.effect(trial).losses, predicted.losses, strict=True)
            ratios = [loss / expected for loss, expected in pairs if expected > 0]
            factors += [max(ratios)] if ratios else []
        return statistics.median(factors) if factors else 1.0

    def next_8_bits(self) -> Parameters | None:
        """Return the best setting with cheaper linear layers that paid alone, or in another precision, untried."""
        winners, space = self.search.winners(), self.search.space
        if not winners:
            return None
        best = winners[0].params
        changes: list[Parameters] = []
        if best.get("linears") == NONE:
            changes += [{"linears": kind} for kind in space.linears if self.paid(kind)]
        if best.get("precision") == space.precisions[0]:
            changes += [{"precision": precision} for precision in space.precisions[1:]]
        untried = ({**best, **change} for change in changes)
        return next((p for p in untried if key_of(p) not in self.by_parameters), None)

    def paid(self, kind: str) -> bool:
        """Return True if a kind of linear layers was faster than dense alone."""
        trial = self.find({"linears": kind})
        if trial is None or "measured" not in trial.user_attrs:
            return False
        return self.effect(trial).log_speedup > 0

    def may_be_bolder(self, trial: FrozenTrial) -> bool:
        """Return True if a bolder step than a finished one is worth a trial."""
        if trial.user_attrs.get("no_effect"):
            return True
        if not self.holds(trial):
            return False
        speed = self.search.goal.speedup
        return speed is None or read_measurements(trial).speedup < speed

    @property
    def allowed(self) -> tuple[float, ...]:
        """Return the error that each target allows."""
        return tuple(target.loss(target.bound) for target in self.search.goal.targets)

    def effect(self, trial: FrozenTrial) -> Effect:
        """Return the measured effect of a trial."""
        measured = read_measurements(trial)
        losses = tuple(
            target.loss(self.worse_end(target, measured.values[target.metric]))
            for target in self.targets
        )
        return Effect(dict(trial.params), math.log(measured.speedup), losses)

    def worse_end(self, target: Target, values: Sequence[float]) -> float:
        """Return the worse end of the mean's interval that the validation will have, also for a stopped trial."""
        mean = float(np.mean(values))
        if len(values) < 2:
            return mean
        quantile = float(stats.t.ppf(0.975, len(self.search.cases) - 1))
        half = quantile * float(np.std(values, ddof=1)) / math.sqrt(self.search.validation)
        return mean - half if target.at_least else mean + half

    def predicted(self) -> Iterator[Effect]:
        """Yield the predicted effects of every joint setting of two levers or more."""
        nothing = Effect(losses=(0.0,) * len(self.targets))
        groups = [
            [nothing, *(e for x in self.ladders if x.lever == lever for e in self.steps(x))]
            for lever in JOINED
        ]
        for combination in itertools.product(*groups):
            if sum(bool(effect.parameters) for effect in combination) > 1:
                yield Effect(
                    {k: v for effect in combination for k, v in effect.parameters.items()},
                    sum(effect.log_speedup for effect in combination),
                    self.joint_losses([effect.losses for effect in combination]),
                )

    def joint_losses(self, losses: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        """Return the predicted errors of settings together.

        They add up. Of captions the worst share counts, because dense clips are wrong, too.
        """
        targets, by_target = self.targets, zip(*losses, strict=True)
        pairs = zip(targets, by_target, strict=True)
        return tuple(max(v) if t.metric == "caption" else sum(v) for t, v in pairs)

    def steps(self, ladder: Ladder) -> Iterator[Effect]:
        """Yield the effects of a ladder's steps up to the boldest measured one, straight between measured ones."""
        places, effects = [-1], [Effect(losses=(0.0,) * len(self.targets))]
        for index, step in enumerate(ladder.steps):
            trial = self.find(step)
            if trial is not None and "measured" in trial.user_attrs:
                places.append(index)
                effects.append(self.effect(trial))
        for index in range(places[-1] + 1):
            speedup = float(np.interp(index, places, [e.log_speedup for e in effects]))
            by_target = zip(*(e.losses for e in effects), strict=True)
            losses = tuple(float(np.interp(index, places, values)) for values in by_target)
            yield Effect(dict(ladder.steps[index]), speedup, losses)

    def is_allowed(self, effect: Effect, correction: float = 1.0) -> bool:
        """Return True if a setting holds every bound, or is predicted to with its errors corrected by a factor."""
        holds = all(
            loss * correction <= bound
            for loss, bound in zip(effect.losses, self.allowed, strict=False)
        )
        least = self.search.goal.speedup
        return holds and (least is None or math.exp(effect.log_speedup) >= AMPLE * least)

    def value(self, effect: Effect) -> float:
        """Return the value to maximize: the speed-up, or less error if the goal names a speed-up."""
        return effect.log_speedup if self.search.goal.speedup is None else -effect.losses[0]

    def complete(self, step: Mapping[str, Any]) -> Parameters:
        """Return the parameters of a step with all other levers off."""
        return {**self.search.space.neutral, **step}

    def find(self, step: Mapping[str, Any]) -> FrozenTrial | None:
        """Return the trial of a step with all other levers off, finished or not."""
        return self.by_parameters.get(key_of(self.complete(step)))

    def alone(self) -> dict[str, dict[str, Any]]:
        """Return for each lever the fastest step that held the goal alone, with its figures."""
        table: dict[str, dict[str, Any]] = {}
        for ladder in self.ladders:
            for step in ladder.steps:
                trial = self.find(step)
                if trial is None or not self.holds(trial):
                    continue
                measured = read_measurements(trial)
                if measured.speedup < (self.search.goal.speedup or 0.0):
                    continue
                figures = {n: round(float(np.mean(v)), 4) for n, v in measured.values.items()}
                speed = round(measured.speedup, 3)
                if speed > table.get(ladder.name, {"speedup": 0.0})["speedup"]:
                    clips = len(next(iter(measured.values.values())))
                    setting = {"setting": ladder.describe(step), "clips": clips}
                    table[ladder.name] = {**setting, "speedup": speed, **figures}
        return table

    def holds(self, trial: FrozenTrial) -> bool:
        """Return True if a measured trial holds every target, at the worse end of its interval."""
        if "measured" not in trial.user_attrs or "failed" in trial.user_attrs:
            return False
        losses = self.effect(trial).losses
        return all(loss <= bound for loss, bound in zip(losses, self.allowed, strict=False))

    def cliffs(self, parameters: Mapping[str, Any]) -> list[str]:
        """Return the levers of a setting whose next bolder step breaks a target by far, in words.

        A setting between two steps of a ladder has a next step. One with other knobs than all ladders has none.
        """
        found = []
        for ladder in self.ladders:
            if parameters.get(ladder.lever, parameters.get("method")) != ladder.name:
                continue
            value = parameters[ladder.knob]
            index = ladder.neighbour(value) if ladder.holds_common(parameters) else None
            trial = None if index is None else self.find(ladder.steps[index])
            if index is None or trial is None or "measured" not in trial.user_attrs:
                continue
            bolder = ladder.steps[index][ladder.knob]
            measured = read_measurements(trial)
            for target in self.search.goal.targets:
                mean = float(np.mean(measured.values[target.metric]))
                if target.loss(mean) > CLIFF * target.loss(target.bound):
                    found.append(
                        f"{ladder.name} is near a cliff: {ladder.knob} {value:g} is in use, and {bolder:g} alone has "
                        f"{target.metric} {mean:.3g}"
                    )
        return found


def parameters_of(trial: FrozenTrial) -> Parameters:
    """Return the parameters of a trial, or those that it was queued with."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def key_of(parameters: Mapping[str, Any]) -> str:
    """Return a name of parameters."""
    return str(sorted(parameters.items()))
