"""Say in words what a setting misses, why a search found none, and what to change."""

from __future__ import annotations

import math

import numpy as np
from optuna.trial import TrialState

from dit_accel_eval.statistics import mean_ci, median_ci
from dit_accel_eval.tune.bench import describe_profile
from dit_accel_eval.tune.goal import AMPLE, Goal, Measurements, read_measurements
from dit_accel_eval.tune.search import Search, read_profile
from dit_accel_eval.tune.targets import WIDE, Target, widening


def describe_end(finished: int, trials: int, minutes: float) -> str | None:
    """Return in words that the time ended a search, or None if it has all its trials."""
    if finished >= trials:
        return None
    time = "1 minute was" if minutes == 1 else f"{minutes:g} minutes were"
    return (
        f"{time} over after {finished} of {trials} trials; the same command with more --minutes "
        "continues"
    )


def shortfall(goal: Goal, measured: Measurements, level: float) -> str | None:
    """Return what a profile misses on fresh clips in words, or None."""
    if measured.failed is not None:
        return "which could not be measured"
    for target in goal.targets:
        values = measured.values[target.metric]
        if not target.holds(values, level):
            return describe_interval(target, values, len(values), level)
    low = median_ci(measured.speedups, level).low
    if goal.speedup is not None and math.isnan(low):
        clips = len(measured.speedups)
        return f"whose {100 * level:.3g} % interval of the speed-up needs more than {clips} clips"
    if goal.speedup is not None and not low >= goal.speedup:
        return (
            f"whose {100 * level:.3g} % interval of the speed-up starts at "
            f"{distinct(low, goal.speedup)}, below {goal.speedup:g}"
        )
    if goal.speedup is None and measured.speedup <= 1.0:
        return "which is slower than dense attention"
    return None


def describe_interval(target: Target, values: list[float], clips: int, level: float = 0.95) -> str:
    """Return in words where the interval of a mean ends on the wrong side of a target.

    Args:
        target: Target that does not hold.
        values: Values of single clips.
        clips: Number of clips that the interval is for.
        level: Confidence level.
    """
    name = f"{100 * level:.3g} % interval of {target.metric}"
    if len(values) < 2:
        return f"whose {name} is unknown, because fewer than two clips have a value"
    low, high = target.interval(values, clips, level)
    if target.at_least:
        return f"whose {name} starts at {distinct(low, target.bound)}, below {target.bound:g}"
    return f"whose {name} ends at {distinct(high, target.bound)}, above {target.bound:g}"


def distinct(value: float, bound: float) -> str:
    """Return a figure with three digits, or with as many more as tell it from a bound."""
    texts = [f"{value:.{digits}g}" for digits in range(3, 12)]
    return next((text for text in texts if text != f"{bound:g}"), texts[0])


def next_steps(
    goal: Goal, measured: Measurements, option: str, ended: str | None, least: float = 1.0
) -> list[str]:
    """Return what to change so that a setting may hold.

    Args:
        goal: What does not hold.
        measured: Figures of a setting.
        option: Option that narrows the interval.
        ended: What ended the search before all its trials, in words.
        least: Speed-up that is needed, as a multiple of the goal's.
    """
    is_slow = measured.failed is None and measured.speedup < (goal.speedup or 1.0) * least
    if not is_slow and has_good_means(goal, measured):
        step = f"the mean holds, so give more {option} to narrow its interval"
        return [step, *([ended] if ended else [])]
    if ended:
        return [ended]
    lower = "lower --speedup" if is_slow and goal.speedup else "weaker --target"
    return [f"give a {lower}, or more --trials"]


def has_good_means(goal: Goal, measured: Measurements) -> bool:
    """Return True if the mean of every metric is on the right side of its target."""
    if measured.failed is not None:
        return False
    return all(
        target.margin(float(np.mean(measured.values[target.metric] or [math.nan]))) >= 0
        for target in goal.targets
    )


def describe_nearest(search: Search, ended: str | None = None) -> str:
    """Return the setting that came nearest to the goal, and what to do next, in words.

    Args:
        search: Search without a setting that holds.
        ended: What ended it before all its trials, in words.
    """
    trial, finished = search.nearest(), search.finished()
    if trial is None:
        reasons = [t.user_attrs["failed"] for t in finished if "failed" in t.user_attrs]
        return f"none could be measured: {reasons[0] if reasons else 'give more --minutes'}"
    measured = read_measurements(trial)
    described = describe_profile(read_profile(trial))
    parts = [
        f"the nearest of {len(finished)} tried{count_stopped(search)} was {described} with "
        f"{describe_measurements(measured)}{describe_miss(search, measured)}"
    ]
    if "failed" in trial.user_attrs:
        return "; ".join([*parts, f"it failed on a later clip: {trial.user_attrs['failed']}"])
    few = min((len(measured.values[name]) for name in search.goal.metrics), default=0)
    option = "--clips" if widening(few) > WIDE else "--validate"
    least = AMPLE if search.goal.speedup else 1.0
    return "; ".join([*parts, *next_steps(search.goal, measured, option, ended, least)])


def describe_miss(search: Search, measured: Measurements) -> str:
    """Return in words which bound of a search a setting misses, empty if none."""
    for target in search.goal.targets:
        values = measured.values[target.metric]
        if search.worst_margin(target, measured) < 0:
            clips = search.validation
            return f", {describe_interval(target, values, clips)}, if {clips} clips validate it"
    if search.goal.speedup is not None and measured.speedup < AMPLE * search.goal.speedup:
        return f", below the {AMPLE * search.goal.speedup:.3g} that leave room for the validation"
    return ""


def count_stopped(search: Search) -> str:
    """Return in words how many trials ended early and why, empty if none."""
    pruned = [t for t in search.finished() if t.state == TrialState.PRUNED]
    failed = [t.user_attrs["failed"] for t in pruned if "failed" in t.user_attrs]
    early = len(pruned) - len(failed)
    counts = [f"{early} stopped early as out of reach"] if early else []
    counts += [f"{len(failed)} failed, the first because {failed[0]}"] if failed else []
    return f" ({', '.join(counts)})" if counts else ""


def describe_measurements(measured: Measurements) -> str:
    """Return figures in words."""
    if measured.failed is not None:
        return measured.failed
    figures = []
    for name, values in measured.values.items():
        mean = mean_ci(values)
        figures.append(f"{name} {mean.mean:.3g} +- {mean.half_width:.2g} ({mean.n} clips)")
    return f"{', '.join(figures)} at {measured.speedup:.2f} times the speed of dense"
