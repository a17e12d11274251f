"""Search profiles clip by clip: planned settings first, then Optuna's TPE under constraints. Bad ones stop early."""

from __future__ import annotations

import glob
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from dit_accel import Profile
from dit_accel.core.caches import MagCache, cache_of
from dit_accel.core.progress import Progress
from dit_accel.errors import first_line
from dit_accel.generation.settings import RenderSettings
from dit_accel_eval.dense import DenseBackend
from dit_accel_eval.digest import digest
from dit_accel_eval.tune.bench import FAILURES, Bench, NoEffect
from dit_accel_eval.tune.goal import AMPLE, Goal, Measurements
from dit_accel_eval.tune.plan import Plan
from dit_accel_eval.tune.space import Space, first_trials
from dit_accel_eval.tune.targets import LOWER, Target

# A setting that is this many times slower than the best one is stopped.
SLOW = 1.05
# A violation that no setting exceeds.
NEVER = 1e6
# Number of clips before a setting may be stopped.
FEWEST_CLIPS = 2


@dataclass
class Search:
    """Trials over a few clips, stored in a journal that a later run resumes.

    Attributes:
        cases: Dense requests of the clips.
        validation: Number of clips for the winner, which sets the width of its interval.
        progress: What shows the progress.
        earlier: Figures that searches of the same clips had measured when this one began, by the digest of the profile.
    """

    goal: Goal
    space: Space
    cases: Sequence[RenderSettings]
    validation: int
    study: optuna.Study
    progress: Progress = field(default_factory=Progress)
    earlier: Mapping[str, Measurements] = field(default_factory=dict)

    def begin(self) -> None:
        """Queue the first trials, and those that a killed run left unfinished."""
        if not self.study.trials and not self.space.has_levers:
            for parameters in first_trials(self.space):
                self.study.enqueue_trial(parameters)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
        alive = [t for t in self.study.trials if t.state != TrialState.FAIL]
        queued = [p for t in alive for p in (t.params, t.system_attrs.get("fixed_params"))]
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
            if trial.params not in queued:
                self.study.enqueue_trial(trial.params)
                queued.append(trial.params)

    def run(
        self, bench: Bench, trials: int, minutes: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Try settings until the study has enough trials, or the time is over.

        The time of earlier trials counts, that of dense references does not. Several processes may run one study at
        once.
        """
        done = min(trials, len(self.finished()))
        left = 60 * minutes - busy_seconds(self.finished())
        if done == trials or left <= 0:
            return
        for case in self.progress.iterate(self.cases, "rendering dense references", unit="clip"):
            bench.prepare(case)
        end = clock() + left
        with self.progress.part("tuning", trials, unit="trial", initial=done) as part:
            while len(self.finished()) < trials and clock() < end:
                self.plan_trial()
                self.study.optimize(lambda trial: self.objective(trial, bench), n_trials=1)
                part.update()

    def plan_trial(self) -> None:
        """Queue the next planned setting of a search with levers, unless one waits already."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if waiting or not self.space.has_levers:
            return
        planned = Plan(self).next_parameters()
        if planned is not None:
            self.study.enqueue_trial(planned, skip_if_exists=True)

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that ended, stopped ones included."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False, states=states)
        return trials

    def measured(self) -> list[FrozenTrial]:
        """Return the finished trials with at least one measured clip."""
        return [t for t in self.finished() if "measured" in t.user_attrs]

    def objective(self, trial: optuna.Trial, bench: Bench) -> float:
        """Measure a trial, and return the value to maximize. A trial that cannot win is stopped."""
        profile = self.space.profile(trial)
        measured, best = Measurements(), self.best_value()
        for number, case in enumerate(self.cases):
            try:
                if number == 0:
                    profile = self.calibrated(profile, bench)
                    trial.set_user_attr("profile", profile.to_dict())
                    measured = self.measured_earlier(profile)
                    trial.set_user_attr("earlier_clips", len(measured.speedups))
                if number >= len(measured.speedups):
                    measured.add(*bench.measure(profile, case))
            except FAILURES as error:
                trial.set_user_attr("failed", first_line(error))
                trial.set_user_attr("no_effect", isinstance(error, NoEffect))
                trial.set_user_attr("constraints", [NEVER])
                raise optuna.TrialPruned from None
            trial.set_user_attr("measured", measured.to_dict())
            trial.set_user_attr("constraints", self.violations(measured))
            trial.report(self.value(measured), number)
            if number + 1 >= FEWEST_CLIPS and self.cannot_win(measured, best):
                raise optuna.TrialPruned
        return self.value(measured)

    def measured_earlier(self, profile: Profile) -> Measurements:
        """Return what is known about a profile on the first clips, maybe on none."""
        found = self.earlier.get(digest(profile.to_dict()), Measurements())
        values = {name: list(numbers) for name, numbers in found.values.items()}
        return Measurements(list(found.speedups), values, dict(found.idle))

    def calibrated(self, profile: Profile, bench: Bench) -> Profile:
        """Return a profile whose MagCache has ratios. The study keeps those of every attention."""
        cache = profile.cache
        if not isinstance(cache, MagCache):
            return profile
        bare = replace(profile, cache=MagCache(), compile=None)
        key = f"magcache {digest(bare.to_dict())}"
        if key not in self.study.user_attrs:
            measured = bench.calibrate(bare, self.cases[0]).levers()["cache"]
            names = ("mag_ratios", "num_inference_steps", "timesteps")
            ratios = {name: measured[name] for name in names if name in measured}
            self.study.set_user_attr(key, ratios)
        return replace(profile, cache=cache_of({**cache.to_dict(), **self.study.user_attrs[key]}))

    def value(self, measured: Measurements) -> float:
        """Return the value to maximize: the speed-up, or the first metric if the goal names a speed-up."""
        if self.goal.speedup is None:
            return measured.speedup
        metric = self.goal.metrics[0]
        mean = float(np.mean(measured.values[metric]))
        return -mean if metric in LOWER else mean

    def violations(self, measured: Measurements) -> list[float]:
        """Return one number per bound, in units of the bound. It is above 0 if the bound would not hold."""
        numbers = [
            min(NEVER, -self.worst_margin(target, measured) / (abs(target.bound) or 1.0))
            for target in self.goal.targets
        ]
        if self.goal.speedup is not None:
            numbers.append(AMPLE - measured.speedup / self.goal.speedup)
        return numbers

    def worst_margin(self, target: Target, measured: Measurements) -> float:
        """Return the margin of the worse end of the interval that the validation will have."""
        return target.margins(measured.values[target.metric], clips=self.validation)[0]

    def cannot_win(self, measured: Measurements, best: float | None) -> bool:
        """Return True if a target is out of reach, or a better setting that holds all targets is known."""
        if any(t.is_out_of_reach(measured.values[t.metric]) for t in self.goal.targets):
            return True
        if self.goal.speedup is not None:
            return SLOW * measured.speedup < self.goal.speedup
        return best is not None and SLOW * measured.speedup < best

    def best_value(self) -> float | None:
        """Return the best value among the settings that hold all targets."""
        winners = self.winners()
        return winners[0].value if winners else None

    def winners(self) -> list[FrozenTrial]:
        """Return complete trials that hold all targets, the best first, each profile once.

        Equal ones are sorted by their parameters, because a killed trial is tried again after later ones.
        """
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        holding = [t for t in complete if max(constraints(t)) <= 0]
        by_profile: dict[str, FrozenTrial] = {}
        for trial in sorted(holding, key=lambda t: (-float(t.value or 0.0), str(t.params))):
            by_profile.setdefault(str(trial.params), trial)
        return list(by_profile.values())

    def nearest(self) -> FrozenTrial | None:
        """Return the measured trial with the smallest violation."""
        return min(self.measured(), key=lambda t: max(constraints(t)), default=None)


def read_fastest(search: Search) -> DenseBackend:
    """Return the dense attention that the speed-ups of a search are ratios to."""
    return DenseBackend(**search.study.user_attrs["dense"])


def constraints(trial: FrozenTrial) -> list[float]:
    """Return the violations of a trial."""
    violations: list[float] = trial.user_attrs.get("constraints", [NEVER])
    return violations


def trial_seconds(trial: FrozenTrial) -> float:
    """Return how long a trial took."""
    return float(trial.duration.total_seconds()) if trial.duration else 0.0


def busy_seconds(trials: Sequence[FrozenTrial]) -> float:
    """Return the seconds during which at least one trial ran."""
    spans = [(t.datetime_start, t.datetime_complete) for t in trials]
    total, until = 0.0, datetime.min
    for start, end in sorted((start, end) for start, end in spans if start and end):
        total += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    return total


def open_study(journal: Path, name: str, seed: int, rank: int = 0) -> optuna.Study:
    """Return the study of a name in a journal, and create it if it is missing.

    Its random choices follow the seed, the process and the number of stored trials. Otherwise a resumed run or a second
    process would try the same settings again.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal.parent.mkdir(parents=True, exist_ok=True)
    storage = open_storage(journal)
    stored = len(stored_trials(journal, name))
    with warnings.catch_warnings():
        for kind in (optuna.exceptions.ExperimentalWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        sampler = optuna.samplers.TPESampler(
            seed=int(np.random.SeedSequence([seed, rank, stored]).generate_state(1)[0]),
            multivariate=True,
            group=True,
            constant_liar=True,
            constraints_func=constraints,
            n_startup_trials=8,
        )
    return optuna.create_study(
        storage=storage, study_name=name, sampler=sampler, direction="maximize", load_if_exists=True
    )


def open_storage(journal: Path) -> JournalStorage:
    """Return the storage of a journal. Its path is absolute, because Optuna's lock is a link to it."""
    return JournalStorage(JournalFileBackend(str(journal.absolute())))


def remove_stale_locks(journal: Path) -> None:
    """Remove the locks that a killed search left beside a journal that no living process writes to."""
    for path in journal.parent.glob(f"{glob.escape(journal.name)}.lock*"):
        path.unlink(missing_ok=True)


def stored_trials(journal: Path, name: str) -> list[FrozenTrial]:
    """Return the trials of a study in a journal, and change nothing."""
    try:
        study = optuna.load_study(storage=open_storage(journal), study_name=name)
        trials: list[FrozenTrial] = study.trials
    except KeyError:
        return []
    return trials


def read_profile(trial: FrozenTrial) -> Profile:
    """Return the profile of a trial."""
    return Profile.from_dict(trial.user_attrs["profile"])
