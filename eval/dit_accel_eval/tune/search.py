"""The search itself: Optuna's TPE under constraints, clip by clip, with an early end for bad settings."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from dit_accel import Profile
from dit_accel.methods import Dense
from dit_accel.render import Clip, RenderSettings, check, render_with
from dit_accel_eval.tune.space import Space, starts
from dit_accel_eval.tune.targets import METRICS, Target

SLOW = 1.05  # a setting that is this much slower than the best one is not rendered further
FEWEST = 2  # clips before a setting may be given up


@dataclass(frozen=True)
class Goal:
    """The fastest profile that holds targets; with ``speedup`` the nearest to dense at that speed or above."""

    targets: tuple[Target, ...]
    speedup: float | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """What has to be measured."""
        return tuple(dict.fromkeys([t.metric for t in self.targets] or ["psnr"]))

    def __str__(self) -> str:
        if self.speedup is None:
            return ", ".join(map(str, self.targets))
        return ", ".join([f"speedup>={self.speedup:g}", *map(str, self.targets)])


@dataclass
class Measured:
    """Figures of a setting, clip by clip."""

    speedups: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        return statistics.median(self.speedups)

    def add(self, speedup: float, values: dict[str, float]) -> None:
        self.speedups.append(speedup)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def to_dict(self) -> dict[str, Any]:
        return {"speedups": self.speedups, "values": self.values}


class Bench:
    """Renders clips dense and otherwise, and measures; dense clips are kept for the process."""

    def __init__(self, pipe: Any, goal: Goal, backbone: Path | None = None) -> None:
        self.pipe, self.goal, self.backbone = pipe, goal, backbone
        self._dense: dict[tuple[str, int], Clip] = {}
        self._warm: set[str] = set()

    def measure(self, profile: Profile, case: RenderSettings) -> tuple[float, dict[str, float]]:
        """Speed-up of the denoising loop over dense, and the metrics of the goal."""
        dense = self.dense(case)
        clip = self._render(profile, case)
        values = {
            name: METRICS[name](clip.frames, dense.frames, case.prompt, self.backbone)
            for name in self.goal.metrics
        }
        return dense.seconds["denoise"] / clip.seconds["denoise"], values

    def dense(self, case: RenderSettings) -> Clip:
        """The dense clip of a case."""
        key = case.prompt, case.seed
        if key not in self._dense:
            self._dense[key] = self._render(Profile(Dense()), case)
        return self._dense[key]

    def forget(self) -> None:
        """Dense clips are rendered anew: their seconds are of the machine as it was then."""
        self._dense.clear()

    def _render(self, profile: Profile, case: RenderSettings) -> Clip:
        settings, _ = check(case)
        if profile.method.name not in self._warm:
            render_with(self.pipe, replace(settings, steps=2), profile)
            self._warm.add(profile.method.name)
        return render_with(self.pipe, settings, profile)


@dataclass
class Search:
    """Trials over a few clips, kept in a journal that a later run goes on with.

    Attributes:
        validation: number of clips the winner will be judged on, for the width of its interval.
    """

    goal: Goal
    space: Space
    cases: Sequence[RenderSettings]
    validation: int
    study: optuna.Study

    def run(
        self, bench: Bench, trials: int, minutes: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Try settings until there are as many as asked for, or the time is over."""
        if not self.study.trials:
            for parameters in starts(self.space):
                self.study.enqueue_trial(parameters)
        end = clock() + 60 * minutes
        with tqdm(total=trials, initial=min(trials, len(self.finished())), desc="tune") as bar:
            while len(self.finished()) < trials and clock() < end:
                self.study.optimize(lambda trial: self.objective(trial, bench), n_trials=1)
                bar.update()

    def finished(self) -> list[FrozenTrial]:
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return self.study.get_trials(deepcopy=False, states=states)

    def objective(self, trial: optuna.Trial, bench: Bench) -> float:
        """What is maximised; a setting that cannot win is given up after a few clips."""
        profile = self.space.profile(trial)
        trial.set_user_attr("profile", profile.to_dict())
        found, best = Measured(), self.best_value()
        for number, case in enumerate(self.cases):
            found.add(*bench.measure(profile, case))
            trial.set_user_attr("measured", found.to_dict())
            trial.set_user_attr("constraints", self.violations(found))
            trial.report(self.value(found), number)
            if number + 1 >= FEWEST and self.hopeless(found, best):
                raise optuna.TrialPruned
        return self.value(found)

    def value(self, found: Measured) -> float:
        """Speed-up, or with a given speed the margin of the metric that is to be best."""
        if self.goal.speedup is None:
            return found.speedup
        metric = self.goal.metrics[0]
        mean = float(np.mean(found.values[metric]))
        return -mean if metric == "lpips" else mean

    def violations(self, found: Measured) -> list[float]:
        """Above 0 where a target is not held, as far as these clips tell of the winner's validation."""
        if len(found.speedups) < FEWEST:
            return [1.0]
        over = [-t.margin_of(found.values[t.metric], self.validation) for t in self.goal.targets]
        if self.goal.speedup is not None:
            over.append(self.goal.speedup - found.speedup)
        return over

    def hopeless(self, found: Measured, best: float | None) -> bool:
        """Whether a target is out of reach, or a better setting that holds them all is known."""
        if any(t.hopeless(found.values[t.metric]) for t in self.goal.targets):
            return True
        if self.goal.speedup is not None:
            return SLOW * found.speedup < self.goal.speedup
        return best is not None and SLOW * found.speedup < best

    def best_value(self) -> float | None:
        """Of the settings that hold all targets."""
        winners = self.winners()
        return winners[0].value if winners else None

    def winners(self) -> list[FrozenTrial]:
        """Complete trials that hold all targets, best first, a profile once."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        fitting = [t for t in done if max(constraints(t)) <= 0]
        best_first = sorted(fitting, key=lambda t: -float(t.value or 0.0))
        seen: dict[str, FrozenTrial] = {}
        for trial in best_first:
            seen.setdefault(str(trial.params), trial)
        return list(seen.values())

    def nearest(self) -> FrozenTrial | None:
        """The trial that came nearest to the targets, if any was made."""
        done = [t for t in self.finished() if "measured" in t.user_attrs]
        return min(done, key=lambda t: max(constraints(t)), default=None)


def constraints(trial: FrozenTrial) -> list[float]:
    """What a trial violates."""
    found: list[float] = trial.user_attrs.get("constraints", [1.0])
    return found


def open_study(journal: Path, name: str, seed: int) -> optuna.Study:
    """The study of a name in a journal, made if it is not there; what a killed run left undone does not count."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            constraints_func=constraints,
            n_startup_trials=8,
        )
    study = optuna.create_study(
        storage=storage, study_name=name, sampler=sampler, direction="maximize", load_if_exists=True
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def measured_of(trial: FrozenTrial) -> Measured:
    """The figures of a trial."""
    return Measured(**trial.user_attrs["measured"])


def profile_of(trial: FrozenTrial) -> Profile:
    """The profile of a trial."""
    return Profile.from_dict(trial.user_attrs["profile"])


def validated(
    bench: Bench, profiles: Sequence[Profile], cases: Sequence[RenderSettings]
) -> list[Measured]:
    """Figures of profiles on clips that the search never saw: per clip dense and the profiles in turn."""
    found = [Measured() for _ in profiles]
    for case in tqdm(cases, desc="validate"):
        for profile, measured in zip(profiles, found, strict=True):
            measured.add(*bench.measure(profile, case))
    return found


def in_turn(prompts: Sequence[str], count: int, first_seed: int) -> Iterator[tuple[str, int]]:
    """``count`` clips: the prompts in turn, each time with another seed."""
    for number in range(count):
        yield prompts[number % len(prompts)], first_seed + number // len(prompts)
