"""A search that finds nothing says by how much, why it ended, and what to change."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from dit_accel import Profile
from dit_accel.errors import RunFailed
from dit_accel.generation.settings import RenderSettings
from dit_accel_eval.tune.goal import Goal, Measurements
from dit_accel_eval.tune.search import Search, open_study
from dit_accel_eval.tune.shortfall import (
    count_stopped,
    describe_end,
    distinct,
    next_steps,
    shortfall,
)
from dit_accel_eval.tune.space import METHODS, Space
from dit_accel_eval.tune.targets import Target, widening
from dit_accel_eval.tune.validation import validate_winners

FRESH = [RenderSettings("q", method="dense", seed=s) for s in range(2)]
GOAL = Goal((Target.parse("psnr>=30"),))


class FixedBench:
    """A bench with one PSNR for each seed."""

    def __init__(self, *psnr: float) -> None:
        self.psnr = psnr

    def measure(self, profile: Profile, case: RenderSettings) -> tuple[float, dict[str, float]]:
        return 1.5, {"psnr": self.psnr[case.seed]}

    def prepare(self, case: RenderSettings) -> None:
        pass

    def forget_times(self) -> None:
        pass


def failure(tmp_path: Path, psnr: tuple[float, ...], ended: str | None = None) -> str:
    """Return the message of a search over clips with these figures."""
    cases = [RenderSettings("p", method="dense", seed=s) for s in range(len(psnr))]
    study = open_study(tmp_path / "t.jsonl", "s", 0)
    search, bench = Search(GOAL, Space(METHODS, 6), cases, len(FRESH), study), FixedBench(*psnr)
    search.begin()
    search.run(bench, 3, 60)
    with pytest.raises(RunFailed) as raised:
        validate_winners(search, bench, FRESH, ended)
    return str(raised.value)


def test_two_clips_whose_mean_holds_call_for_more_clips(tmp_path: Path) -> None:
    message = failure(tmp_path, (50.7, 55.3))
    # The half width is 12.706 times the standard error, 2.3.
    assert "psnr 53 +- 29 (2 clips)" in message
    assert "whose 95 % interval of psnr starts at 23.8, below 30, if 2 clips validate it" in message
    assert message.endswith("; the mean holds, so give more --clips to narrow its interval")
    assert len(message) < 600, "the command line would cut it"


def test_many_clips_whose_mean_holds_call_for_a_longer_validation(tmp_path: Path) -> None:
    message = failure(tmp_path, (30.0, 34.0, 30.0, 34.0, 30.0, 34.0))
    assert message.endswith("; the mean holds, so give more --validate to narrow its interval")


def test_a_mean_that_misses_calls_for_a_weaker_target_and_stopped_trials_count(
    tmp_path: Path,
) -> None:
    message = failure(tmp_path, (20.0, 20.2, 20.1))
    assert "the nearest of 3 tried (3 stopped early as out of reach) was" in message
    assert message.endswith("; give a weaker --target, or more --trials")


def test_the_time_that_ended_a_search_is_named_with_its_next_step(tmp_path: Path) -> None:
    ended = describe_end(1, 3, 3.0)
    assert ended == (
        "3 minutes were over after 1 of 3 trials; the same command with more --minutes continues"
    )
    assert describe_end(3, 3, 3.0) is None
    assert describe_end(0, 3, 1.0).startswith("1 minute was over after 0 of 3 trials")
    message = failure(tmp_path, (20.0, 20.2, 20.1), ended)
    assert message.endswith(f"starts at 18.8, below 30, if 2 clips validate it; {ended}")


def test_a_failed_validation_names_the_end_of_the_interval() -> None:
    measured = Measurements([1.5, 1.5, 1.5], {"psnr": [33.0, 29.0, 31.0]})
    missed = shortfall(GOAL, measured, 0.95)
    assert missed == "whose 95 % interval of psnr starts at 26, below 30"
    step = "the mean holds, so give more --validate to narrow its interval"
    assert next_steps(GOAL, measured, "--validate", None) == [step]
    lower = Goal((Target.parse("lpips<=0.1"),))
    measured = Measurements([1.5] * 3, {"lpips": [0.1, 0.12, 0.14]})
    assert re.fullmatch(
        r"whose 95 % interval of lpips ends at 0\.17, above 0\.1", shortfall(lower, measured, 0.95)
    )
    assert next_steps(lower, measured, "--validate", None) == [
        "give a weaker --target, or more --trials"
    ]
    fast = Goal((), speedup=2.0)
    assert next_steps(fast, Measurements([1.5], {"psnr": [33.0]}), "--validate", None) == [
        "give a lower --speedup, or more --trials"
    ]


def test_an_end_close_to_its_bound_keeps_its_digits() -> None:
    assert distinct(23.77, 30.0) == "23.8"
    assert distinct(29.998, 30.0) == "29.998"


def test_few_clips_widen_the_interval() -> None:
    assert widening(2) == pytest.approx(12.706 / 1.960, rel=1e-3)
    assert widening(5) == pytest.approx(2.776 / 1.960, rel=1e-3)


def test_the_reason_of_a_failed_trial_is_told() -> None:
    reason = "the first-block cache skipped 0 of 8 forwards"
    pruned = [
        optuna.trial.create_trial(state=TrialState.PRUNED, user_attrs=a)
        for a in ({"failed": reason}, {})
    ]
    told = count_stopped(SimpleNamespace(finished=lambda: pruned))
    assert told == f" (1 stopped early as out of reach, 1 failed, the first because {reason})"
