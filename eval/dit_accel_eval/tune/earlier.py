"""Use what earlier searches measured on the same clips: figures of profiles, and constants of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna

from dit_accel_eval.digest import digest
from dit_accel_eval.tune.goal import Measurements, read_measurements
from dit_accel_eval.tune.search import open_storage

# Name of the attribute that holds the winners that missed a goal on fresh clips, without the goal.
REFUTED = "refuted for "
# Attributes that hold for other studies of the same clips, too: dense attention, ratios of MagCache, error curves, and
# refuted winners, because more fresh clips begin with the same ones.
CONSTANTS = ("dense", "magcache ", "budgets ", REFUTED)


def earlier_studies(journal: Path, clips: str) -> list[optuna.Study]:
    """Return the studies of a journal that have the same clips, by `Tuning.clips_name`."""
    storage = open_storage(journal)
    names = optuna.get_all_study_names(storage)
    studies = (optuna.load_study(storage=storage, study_name=name) for name in names)
    return [study for study in studies if study.user_attrs.get("clips") == clips]


def copy_constants(studies: Sequence[optuna.Study], study: optuna.Study) -> None:
    """Give a study what others measured that holds for it, too."""
    known = study.user_attrs
    for earlier in studies:
        for name, value in earlier.user_attrs.items():
            if name.startswith(CONSTANTS) and name not in known:
                study.set_user_attr(name, value)
                known[name] = value


def earlier_figures(
    studies: Sequence[optuna.Study], metrics: Sequence[str]
) -> dict[str, Measurements]:
    """Return the figures of profiles that have all metrics, by the digest of the profile.

    Of several measurements of a profile, the one with the most clips counts. Settings that failed have none.
    """
    found: dict[str, Measurements] = {}
    for study in studies:
        for trial in study.get_trials(deepcopy=False):
            if "measured" not in trial.user_attrs or "failed" in trial.user_attrs:
                continue
            measured = read_measurements(trial)
            if not set(metrics) <= measured.values.keys():
                continue
            measured.values = {name: measured.values[name] for name in metrics}
            key = digest(trial.user_attrs["profile"])
            if len(measured.speedups) > len(found.get(key, Measurements()).speedups):
                found[key] = measured
    return found
