"""The winner of a search, judged on clips that the search never saw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from tqdm import tqdm

from dit_accel import Profile
from dit_accel.errors import RunFailed, first_line
from dit_accel.generation.settings import RenderSettings
from dit_accel_eval.statistics import Estimate, estimate, middle
from dit_accel_eval.tune.search import (
    FAILURES,
    Bench,
    Goal,
    Measured,
    Search,
    measured_of,
    profile_of,
)
from dit_accel_eval.tune.targets import Target

TRIED = 3  # winners that are validated before it is said that none holds
FEWEST_RATIOS = 7  # clips that give a median an interval, at the highest of the levels, too


@dataclass(frozen=True)
class Tuned:
    """The outcome: the profile, and what the winner and the shipped default measured on fresh clips."""

    profile: Profile
    winner: Measured
    default: Measured
    attempts: int  # settings that were validated until one held


def best(search: Search, bench: Bench, fresh: Sequence[RenderSettings]) -> Tuned:
    """The first of the winners that holds the targets on fresh clips. Each further one that is tried must have had
    more room in the search by what the one before it missed, and must hold at a higher level, because the clips
    are the same: with 95 %, 97.5 % and 98.3 %, of which one end counts, a promise is wrong in 4.6 % at most.

    Raises:
        RunFailed: if none does, with what was measured.
    """
    default: Measured | None = None
    failed: list[str] = []
    winners = search.winners()
    while winners and len(failed) < TRIED:
        trial, attempt = winners[0], len(failed) + 1
        profile = profile_of(trial)
        winner, *others = validated(
            bench, [profile, Profile()][: 1 + (default is None)], fresh, search.study
        )
        default = others[0] if others else default
        assert default is not None
        wrong = shortfall(search.goal, winner, 1 - 0.05 / attempt)
        if wrong is None:
            return Tuned(profile, winner, default, attempt)
        failed.append(f"{profile.method.name} on fresh clips: {described(winner)}, {wrong}")
        winners = winners[1:]
        if winner.failed is None:
            winners = [w for w in winners if has_room(search, w, trial, winner)]
    reason = "; ".join(failed) or nearest(search)
    raise RunFailed(f"no setting holds {search.goal}: {reason}")


def has_room(search: Search, trial: FrozenTrial, before: FrozenTrial, fresh: Measured) -> bool:
    """Whether a trial had more room in the search than one before it, by what that missed on fresh clips."""
    own, others = measured_of(trial), measured_of(before)
    for target in search.goal.targets:
        missed = -target.margins(fresh.values[target.metric])[0]
        if search.room(target, own) < search.room(target, others) + missed:
            return False
    wanted = search.goal.speedup
    return wanted is None or own.speedup * middle(fresh.speedups).low >= others.speedup * wanted


def shortfall(goal: Goal, found: Measured, level: float) -> str | None:
    """What a goal misses on fresh clips, or None."""
    if found.failed is not None:
        return "which could not be measured"
    for target in goal.targets:
        if not target.holds(found.values[target.metric], level):
            return f"whose {100 * level:.3g} % interval does not hold {target}"
    if goal.speedup is not None and not middle(found.speedups, level).low >= goal.speedup:
        return f"whose {100 * level:.3g} % interval does not hold speedup>={goal.speedup:g}"
    if goal.speedup is None and found.speedup <= 1.0:
        return "which dense attention is faster than"
    return None


def nearest(search: Search) -> str:
    """What came nearest, in words."""
    trial = search.nearest()
    if trial is None:
        reasons = [t.user_attrs["failed"] for t in search.finished() if "failed" in t.user_attrs]
        return f"none could be measured: {reasons[0] if reasons else 'give more --minutes'}"
    tried = len(search.finished())
    found = described(measured_of(trial))
    return f"the nearest of {tried} tried was {profile_of(trial).method.name} with {found}"


def described(found: Measured) -> str:
    """Figures in words."""
    if found.failed is not None:
        return found.failed
    values = [f"{name} {told(estimate(v))}" for name, v in found.values.items()]
    return f"{', '.join(values)} at {found.speedup:.2f} times the speed of dense"


def told(figure: Estimate) -> str:
    return f"{figure.mean:.3g} +- {figure.half_width:.2g} ({figure.n} clips)"


def figures(goal: Goal, measured: Measured) -> dict[str, Any]:
    """Median speed-up, and mean of every metric, with the ends of their 95 % intervals."""
    if measured.failed is not None:
        return {"failed": measured.failed}
    ratio = middle(measured.speedups)
    ends = {"low": ratio.low, "high": ratio.high} if ratio.n >= FEWEST_RATIOS else {}
    told = {"median": ratio.median, **ends}
    found: dict[str, Any] = {"speedup": {name: round(value, 3) for name, value in told.items()}}
    targets = {t.metric: t for t in goal.targets}
    for name, values in measured.values.items():
        target = targets.get(name, Target(name, True, 0.0))
        low, high = target.interval(values, len(values))
        mean = sum(values) / len(values)
        found[name] = {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}
    return found


def validated(
    bench: Bench,
    profiles: Sequence[Profile],
    cases: Sequence[RenderSettings],
    study: optuna.Study,
) -> list[Measured]:
    """Figures of profiles on clips that the search never saw: per clip dense and the profiles in turn. Each is
    kept in the study as soon as it is there; a profile that fails is not rendered further.
    """
    bench.forget_times()
    found = [Measured() for _ in profiles]
    for case in tqdm(cases, desc="validate"):
        for profile, measured in zip(profiles, found, strict=True):
            if measured.failed:
                continue
            key = kept_as(profile, case)
            if key not in study.user_attrs:
                try:
                    study.set_user_attr(key, bench.measure(profile, case))
                except FAILURES as error:
                    measured.failed = f"{first_line(error)} on {case.prompt!r}, seed {case.seed}"
                    continue
            measured.add(*study.user_attrs[key])
    return found


def kept_as(profile: Profile, case: RenderSettings) -> str:
    """The name in a study of what a profile measured on a fresh clip; the study's own name holds the rest."""
    told = json.dumps([profile.to_dict(), case.prompt, case.seed], sort_keys=True)
    return f"validated {hashlib.sha256(told.encode()).hexdigest()[:16]}"
