"""A promise counts all winners that were validated on the same fresh clips, also those of earlier runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from dit_accel import Profile, SVGEar
from dit_accel.errors import RunFailed
from dit_accel.generation.settings import RenderSettings
from dit_accel_eval.tune.earlier import copy_constants
from dit_accel_eval.tune.goal import Goal
from dit_accel_eval.tune.search import Search, open_study
from dit_accel_eval.tune.space import METHODS, Space
from dit_accel_eval.tune.targets import Target
from dit_accel_eval.tune.validation import (
    MOST_ATTEMPTS,
    attempt_of,
    level_of,
    refuted_winners,
    validate_winners,
)

GOAL = Goal((Target.parse("psnr>=30"),))
CASES = [RenderSettings("p", method="dense", seed=s) for s in range(3)]
FRESH = [RenderSettings("q", method="dense", seed=s) for s in range(8)]


class Hopeful:
    """A bench whose fresh clips are worse than those of the search."""

    def __init__(self, fresh: float) -> None:
        self.fresh = fresh

    def measure(self, profile: Profile, case: RenderSettings) -> tuple[float, dict[str, float]]:
        speed = 2.0 - profile.schedule.dense_steps
        return speed, {
            "psnr": 40 / speed + case.seed % 2 + (self.fresh if case.prompt == "q" else 15)
        }

    def prepare(self, case: RenderSettings) -> None:
        pass

    def forget_times(self) -> None:
        pass


def searched(journal: Path, name: str, goal: Goal = GOAL) -> Search:
    search = Search(goal, Space(METHODS, 6), CASES, len(FRESH), open_study(journal, name, 0))
    search.begin()
    search.run(Hopeful(0), 12, 60)
    return search


def test_winners_that_missed_count_in_later_runs(tmp_path: Path) -> None:
    search = searched(tmp_path / "t.jsonl", "20 clips")
    assert attempt_of(search, Profile()) == 1
    with pytest.raises(RunFailed, match="95 % interval of psnr starts at"):
        validate_winners(search, Hopeful(-9), FRESH)
    refuted = refuted_winners(search)
    assert 1 <= len(refuted) <= MOST_ATTEMPTS
    assert attempt_of(search, Profile(SVGEar(density=0.99))) == len(refuted) + 1
    with pytest.raises(RunFailed):
        validate_winners(search, Hopeful(-9), FRESH)
    assert refuted_winners(search)[: len(refuted)] == refuted, "their numbers stay"
    more = searched(tmp_path / "t.jsonl", "30 clips")
    copy_constants([search.study], more.study)
    assert refuted_winners(more) == refuted_winners(search)
    other = searched(tmp_path / "t.jsonl", "other", Goal((Target.parse("psnr>=20"),)))
    copy_constants([search.study], other.study)
    assert refuted_winners(other) == []


def test_the_risk_of_any_number_of_winners_is_5_percent() -> None:
    levels = [level_of(attempt) for attempt in range(1, 1000)]
    assert levels[:3] == pytest.approx([0.95, 0.9833, 0.9917], abs=1e-4)
    assert all(low < high for low, high in itertools.pairwise(levels))
    assert sum((1 - level) / 2 for level in levels) <= 0.05
