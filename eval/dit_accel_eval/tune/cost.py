"""Say what a search would render at most, before it begins."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import FrozenTrial

from dit_accel.generation.identity import find_ingredients
from dit_accel_eval.tune.goal import read_measurements
from dit_accel_eval.tune.levers import usable_levers
from dit_accel_eval.tune.run import Tuning, check_tuning, forwards_per_clip
from dit_accel_eval.tune.search import stored_trials, trial_seconds
from dit_accel_eval.tune.validation import MOST_ATTEMPTS


def describe_cost(tuning: Tuning, out: Path) -> str:
    """Check a request, and return what `tune` would render at most. It writes nothing.

    The answer has minutes once the journal has trials that rendered clips.
    """
    card, journal = check_tuning(tuning, out)
    clips = tuning.clips * (tuning.trials + 1) + (1 + 2 * MOST_ATTEMPTS) * tuning.validation
    seconds = []
    if journal.exists():
        made_of = find_ingredients(tuning.base, card)
        for trial in stored_trials(journal, tuning.study_name(made_of)):
            if trial.duration and (rendered := rendered_clips(trial)):
                seconds.append(trial_seconds(trial) / rendered)
    most = f"at most {clips} clips (and dense ones timed anew now and then) and {tuning.minutes:g} minutes of search"
    if tuning.budgets:
        forwards = tuning.budgets * forwards_per_clip(card)
        most = f"{most}, after {forwards} single forwards that measure budgets"
    if "magcache" in usable_levers(tuning.levers, tuning.cases()[0][0], card).caches:
        most = f"{most}; and one clip for each attention that magcache is calibrated under"
    if not seconds:
        return f"{most}; the minutes in all are known after the first trial"
    return f"{most}; about {clips * sum(seconds) / len(seconds) / 60:.0f} minutes in all"


def rendered_clips(trial: FrozenTrial) -> int:
    """Return how many clips a trial rendered, without those that an earlier search had measured."""
    if "measured" not in trial.user_attrs:
        return 0
    known = trial.user_attrs.get("earlier_clips", 0)
    return len(read_measurements(trial).speedups) - int(known)
