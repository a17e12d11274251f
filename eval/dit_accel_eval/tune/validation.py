"""Validate the winners of a search on clips that the search did not use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from dit_accel import Profile
from dit_accel.errors import RunFailed, first_line
from dit_accel.generation.settings import RenderSettings
from dit_accel_eval.digest import digest
from dit_accel_eval.statistics import median_ci
from dit_accel_eval.tune.bench import FAILURES, Bench, describe_profile
from dit_accel_eval.tune.earlier import REFUTED
from dit_accel_eval.tune.goal import Goal, Measurements, read_measurements
from dit_accel_eval.tune.plan import Plan
from dit_accel_eval.tune.search import Search, read_profile
from dit_accel_eval.tune.shortfall import (
    describe_measurements,
    describe_nearest,
    next_steps,
    shortfall,
)
from dit_accel_eval.tune.targets import Target

# Number of winners that are validated before the search has failed.
MOST_ATTEMPTS = 3
# Number of clips that gives a median an interval, at the highest of these winners' levels too.
FEWEST_RATIOS = 8


@dataclass(frozen=True)
class Tuned:
    """The profile that holds the goal, with its figures and the shipped default's on the same fresh clips.

    Attributes:
        attempts: Number of settings that were validated.
        cliffs: Levers whose next bolder step breaks a target by far, in words.
        alone: How far each lever went alone in the search.
        ended: What ended the search before all its trials, in words.
    """

    profile: Profile
    winner: Measurements
    default: Measurements
    attempts: int
    cliffs: tuple[str, ...] = ()
    alone: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ended: str | None = None


def validate_winners(
    search: Search, bench: Bench, fresh: Sequence[RenderSettings], ended: str | None = None
) -> Tuned:
    """Return the first winner that holds the goal on fresh clips.

    A further winner must have had more margin in the search, by what the one before it missed. It must also hold at a
    higher level, because the clips are the same: 95 %, 98.3 %, 99.2 % and so on. Winners of earlier runs of the search
    count, too. One end of each interval counts, so a promise is wrong in at most 5 % of the cases.

    Args:
        ended: What ended the search before all its trials, in words.

    Raises:
        RunFailed: if no winner holds the goal. The message has the figures, and what to do next.
    """
    default: Measurements | None = None
    failures: list[str] = []
    winners = search.winners()
    while winners and len(failures) < MOST_ATTEMPTS:
        trial = winners[0]
        profile = read_profile(trial)
        attempt = attempt_of(search, profile)
        profiles = [profile] if default else [profile, Profile()]
        measured, *others = measure_fresh(search, bench, profiles, fresh)
        default = default or others[0]
        missed = shortfall(search.goal, measured, level_of(attempt))
        if missed is None:
            cliffs = Plan(search).cliffs(trial.params)
            return Tuned(profile, measured, default, attempt, tuple(cliffs), ended=ended)
        remember_refuted(search, profile)
        figures = describe_measurements(measured)
        failures.append(f"{describe_profile(profile)} on fresh clips: {figures}, {missed}")
        winners = winners[1:]
        if measured.failed is None:
            winners = [w for w in winners if has_more_margin(search, w, trial, measured)]
    if not failures:
        raise RunFailed(f"no setting holds {search.goal}: {describe_nearest(search, ended)}")
    reasons = [*failures, *next_steps(search.goal, measured, "--validate", ended)]
    raise RunFailed(f"no setting holds {search.goal}: {'; '.join(reasons)}")


def attempt_of(search: Search, profile: Profile) -> int:
    """Return the number of a winner among all that were validated for the goal on the same clips, from 1."""
    refuted, key = refuted_winners(search), digest(profile.to_dict())
    return refuted.index(key) + 1 if key in refuted else len(refuted) + 1


def level_of(attempt: int) -> float:
    """Return the confidence level of a winner, by its number.

    The risks of all numbers sum to 10 %, half of it at each end.
    """
    return 1 - 0.1 / (attempt * (attempt + 1))


def refuted_winners(search: Search) -> list[str]:
    """Return the digests of the winners that missed the goal on fresh clips, in their order."""
    return list(search.study.user_attrs.get(f"{REFUTED}{search.goal}", []))


def remember_refuted(search: Search, profile: Profile) -> None:
    """Keep in the study that a winner missed the goal on fresh clips."""
    refuted, key = refuted_winners(search), digest(profile.to_dict())
    if key not in refuted:
        search.study.set_user_attr(f"{REFUTED}{search.goal}", [*refuted, key])


def has_more_margin(
    search: Search, trial: FrozenTrial, before: FrozenTrial, fresh: Measurements
) -> bool:
    """Return True if a trial had more margin in the search than an earlier one, by what that missed on fresh clips."""
    measured, earlier = read_measurements(trial), read_measurements(before)
    for target in search.goal.targets:
        missed = -target.margins(fresh.values[target.metric])[0]
        if search.worst_margin(target, measured) < search.worst_margin(target, earlier) + missed:
            return False
    least = search.goal.speedup
    if least is None:
        return True
    return measured.speedup * median_ci(fresh.speedups).low >= earlier.speedup * least


def intervals(goal: Goal, measured: Measurements) -> dict[str, Any]:
    """Return the median speed-up and the mean of every metric, with the ends of their 95 % intervals."""
    if measured.failed is not None:
        return {"failed": measured.failed}
    ratio = median_ci(measured.speedups)
    ends = {"low": ratio.low, "high": ratio.high} if ratio.n >= FEWEST_RATIOS else {}
    rounded = {name: round(value, 3) for name, value in {"median": ratio.median, **ends}.items()}
    figures: dict[str, Any] = {"speedup": rounded}
    targets = {target.metric: target for target in goal.targets}
    for name, values in measured.values.items():
        target = targets.get(name, Target(name, True, 0.0))
        low, high = target.interval(values, len(values))
        mean = sum(values) / len(values)
        figures[name] = {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}
    return figures


def measure_fresh(
    search: Search, bench: Bench, profiles: Sequence[Profile], cases: Sequence[RenderSettings]
) -> list[Measurements]:
    """Measure profiles on fresh clips: per clip first dense, then the profiles in turn.

    The study stores each measurement at once. A profile that fails is not rendered further.
    """
    bench.forget_times()
    results = [Measurements() for _ in profiles]
    study = search.study
    for case in search.progress.iterate(cases, "validating", unit="clip"):
        for profile, measured in zip(profiles, results, strict=True):
            if measured.failed:
                continue
            # The name of the study stands for everything else that decides the figures.
            key = f"validated {digest([profile.to_dict(), case.prompt, case.seed])}"
            if key not in study.user_attrs:
                try:
                    study.set_user_attr(key, bench.measure(profile, case))
                except FAILURES as error:
                    measured.failed = f"{first_line(error)} on {case.prompt!r}, seed {case.seed}"
                    continue
            measured.add(*study.user_attrs[key])
    return results
