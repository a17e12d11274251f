"""The search itself: Optuna's TPE under constraints, clip by clip, with an early end for bad settings."""

from __future__ import annotations

import hashlib
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from dit_accel import Profile
from dit_accel.errors import first_line
from dit_accel.generation.render import Clip, render_with
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.methods import Dense
from dit_accel.runtime.cost_model import SlowdownWarning
from dit_accel_eval.dense import NATIVE, DenseBackend, finite
from dit_accel_eval.frames import keep_frames, load_frames
from dit_accel_eval.tune.space import Space, starts
from dit_accel_eval.tune.targets import METRICS, Target

SLOW = 1.05  # a setting that is this much slower than the best one is not rendered further
AMPLE = 1.03  # times an asked speed-up: what the search wants, for the validation to have some room
RETIMED = 600.0  # seconds after which dense is timed anew: a machine is not the same all day
NEVER = 1e6  # a violation that nothing is above
FEWEST = 2  # clips before a setting may be given up
# Frames that are not finite, or that a device has no room for.
FAILURES = (ValueError, torch.OutOfMemoryError)


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
    """Figures of a setting, clip by clip, or why one could not be measured."""

    speedups: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    failed: str | None = None

    @property
    def speedup(self) -> float:
        return statistics.median(self.speedups)

    def add(self, speedup: float, values: dict[str, float]) -> None:
        self.speedups.append(speedup)
        for name, value in values.items():
            kept = self.values.setdefault(name, [])
            kept += [value] if math.isfinite(value) else []  # no object in the dense clip

    def to_dict(self) -> dict[str, Any]:
        return {"speedups": self.speedups, "values": self.values}


class Bench:
    """Renders clips dense and otherwise, and measures; dense frames are kept in a folder until `close`.

    Attributes:
        fastest: the dense attention that speed-ups are ratios to.
    """

    def __init__(self, pipe: Any, goal: Goal, backbone: Path | None = None) -> None:
        self.pipe, self.goal, self.backbone = pipe, goal, backbone
        self.fastest = DenseBackend(NATIVE, {})
        self._folder = tempfile.TemporaryDirectory(prefix="dit_accel-tune-")
        self._dense: dict[tuple[str, int], tuple[float, float]] = {}  # seconds, and when
        self._warm: set[tuple[str, str, str]] = set()

    def close(self) -> None:
        self._folder.cleanup()

    def measure(self, profile: Profile, case: RenderSettings) -> tuple[float, dict[str, float]]:
        """Speed-up of the denoising loop over dense, and the metrics of the goal.

        Raises:
            ValueError: for frames that are not finite.
        """
        dense, seconds = self._dense_clip(case)
        clip = self._render(profile, case)
        values = {
            name: METRICS[name](clip.frames, dense, case.prompt, self.backbone)
            for name in self.goal.metrics
        }
        return seconds / clip.seconds["denoise"], values

    def forget_times(self) -> None:
        """Dense is timed anew for every clip."""
        self._dense.clear()

    def _dense_clip(self, case: RenderSettings) -> tuple[np.ndarray, float]:
        """Frames and seconds of the dense clip, timed not too long ago."""
        key = case.prompt, case.seed
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        path = Path(self._folder.name) / f"{name}.safetensors"
        frames = load_frames(path)
        seconds, when = self._dense.get(key, (0.0, -math.inf))
        if frames is None or time.monotonic() - when > RETIMED:
            timed = self.fastest.render(self.pipe, validate(case)[0])
            seconds = timed.seconds["denoise"]
            if frames is None:
                own = self.fastest.name == NATIVE
                frames = timed.frames if own else self._render(Profile(Dense()), case).frames
                finite(frames, case)
                keep_frames(path, frames)
            self._dense[key] = seconds, time.monotonic()
        return frames, seconds

    def _render(self, profile: Profile, case: RenderSettings) -> Clip:
        settings, _ = validate(case)
        kind = (profile.method.name, profile.precision, profile.dense_precision)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlowdownWarning)  # that is what is being found out
            if kind not in self._warm:
                sparse = replace(profile, schedule=replace(profile.schedule, dense_steps=0.0))
                render_with(self.pipe, replace(settings, steps=2), sparse)
                self._warm.add(kind)
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
        """Try settings until there are as many as asked for, or the time is over, that of killed runs counted;
        several processes may do so at once.
        """
        end = clock() + 60 * minutes - spent(self.finished())
        with tqdm(total=trials, initial=min(trials, len(self.finished())), desc="tune") as bar:
            while len(self.finished()) < trials and clock() < end:
                self.study.optimize(lambda trial: self.objective(trial, bench), n_trials=1)
                bar.update()

    def begin(self) -> None:
        """What is tried first; what a killed run left undone is done again."""
        if not self.study.trials:
            for parameters in starts(self.space):
                self.study.enqueue_trial(parameters)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
        alive = [t for t in self.study.trials if t.state != TrialState.FAIL]
        tried = [p for t in alive for p in (t.params, t.system_attrs.get("fixed_params"))]
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
            if trial.params not in tried:
                self.study.enqueue_trial(trial.params)
                tried.append(trial.params)

    def finished(self) -> list[FrozenTrial]:
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return self.study.get_trials(deepcopy=False, states=states)

    def measured(self) -> list[FrozenTrial]:
        """Finished trials of which at least one clip could be measured."""
        return [t for t in self.finished() if "measured" in t.user_attrs]

    def objective(self, trial: optuna.Trial, bench: Bench) -> float:
        """What is maximised; a setting that cannot win is given up after a few clips."""
        profile = self.space.profile(trial)
        trial.set_user_attr("profile", profile.to_dict())
        found, best = Measured(), self.best_value()
        for number, case in enumerate(self.cases):
            try:
                found.add(*bench.measure(profile, case))
            except FAILURES as error:
                trial.set_user_attr("failed", first_line(error))
                trial.set_user_attr("constraints", [NEVER])
                raise optuna.TrialPruned from None
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
        """Above 0 where a target is not held, as far as these clips tell of the winner's validation; in units
        of the bound.
        """
        over = []
        for target in self.goal.targets:
            over.append(min(NEVER, -self.room(target, found) / (abs(target.bound) or 1.0)))
        if self.goal.speedup is not None:
            over.append(AMPLE - found.speedup / self.goal.speedup)
        return over

    def room(self, target: Target, found: Measured) -> float:
        """How far the worse end of the interval that the validation will have is on the right side."""
        return target.margins(found.values[target.metric], clips=self.validation)[0]

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
        return min(self.measured(), key=lambda t: max(constraints(t)), default=None)


def constraints(trial: FrozenTrial) -> list[float]:
    """What a trial violates."""
    found: list[float] = trial.user_attrs.get("constraints", [NEVER])
    return found


def duration(trial: FrozenTrial) -> float:
    """Seconds that a trial took."""
    return trial.duration.total_seconds() if trial.duration else 0.0


def spent(trials: Sequence[FrozenTrial]) -> float:
    """Seconds in which at least one of some trials ran."""
    known = [(t.datetime_start, t.datetime_complete) for t in trials]
    total, until = 0.0, datetime.min
    for start, end in sorted((a, b) for a, b in known if a and b):
        total += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    return total


def open_study(journal: Path, name: str, seed: int, rank: int = 0) -> optuna.Study:
    """The study of a name in a journal, made if it is not there; what it tries next follows from the seed, the
    process and the trials that are there: the same twice would be tried in vain.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    known = len(kept_trials(journal, name))
    with warnings.catch_warnings():
        for kind in (optuna.exceptions.ExperimentalWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        sampler = optuna.samplers.TPESampler(
            seed=int(np.random.SeedSequence([seed, rank, known]).generate_state(1)[0]),
            multivariate=True,
            group=True,
            constant_liar=True,
            constraints_func=constraints,
            n_startup_trials=8,
        )
    return optuna.create_study(
        storage=storage, study_name=name, sampler=sampler, direction="maximize", load_if_exists=True
    )


def kept_trials(journal: Path, name: str) -> list[FrozenTrial]:
    """What a journal holds of a study; nothing is changed."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    try:
        return optuna.load_study(storage=storage, study_name=name).trials
    except KeyError:
        return []


def measured_of(trial: FrozenTrial) -> Measured:
    """The figures of a trial."""
    return Measured(**trial.user_attrs["measured"])


def profile_of(trial: FrozenTrial) -> Profile:
    """The profile of a trial."""
    return Profile.from_dict(trial.user_attrs["profile"])


def in_turn(prompts: Sequence[str], count: int, first_seed: int) -> Iterator[tuple[str, int]]:
    """``count`` clips: the prompts in turn, each time with another seed."""
    for number in range(count):
        yield prompts[number % len(prompts)], first_seed + number // len(prompts)
