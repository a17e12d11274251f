"""A search shows its phases in words, limits the time of trials, and warns of settings that can hardly work."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dit_accel import Profile
from dit_accel.core.caches import FirstBlockCache
from dit_accel.core.progress import Progress
from dit_accel.errors import RunFailed
from dit_accel.generation.settings import RenderSettings
from dit_accel.methods import Dense
from dit_accel_eval.tune.bench import Bench
from dit_accel_eval.tune.describe import warn_doubtful
from dit_accel_eval.tune.goal import Goal
from dit_accel_eval.tune.run import Tuning
from dit_accel_eval.tune.search import Search, open_study
from dit_accel_eval.tune.space import METHODS, Space
from dit_accel_eval.tune.targets import Target

CASES = [RenderSettings("p", method="dense", seed=s) for s in range(3)]
GOAL = Goal((Target.parse("psnr>=30"),))


class SlowBench:
    """A bench whose dense references take 100 seconds and whose clips take 30 seconds each."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, []

    def prepare(self, case: RenderSettings) -> None:
        self.now += 100
        self.done.append("dense")

    def measure(self, profile: Profile, case: RenderSettings) -> tuple[float, dict[str, float]]:
        self.now += 30
        self.done.append("clip")
        return 1.5, {"psnr": 40.0 + case.seed}


def test_dense_references_are_a_phase_that_takes_no_time_of_the_search(tmp_path: Path) -> None:
    bench, shown = SlowBench(), io.StringIO()
    study = open_study(tmp_path / "t.jsonl", "s", 0)
    search = Search(GOAL, Space(METHODS, 6), CASES, 2, study, Progress(shown, verbose=True))
    search.begin()
    search.run(bench, 5, minutes=2, clock=lambda: bench.now)
    assert bench.done == ["dense"] * 3 + ["clip"] * 6, "a trial begins within two minutes"
    lines = shown.getvalue().splitlines()
    assert lines[0] == "rendering dense references"
    assert lines.index("tuning") > lines.index(
        "rendering dense references: clip 3 of 3, 00:00 so far"
    )


def test_a_finished_search_renders_no_dense_reference(tmp_path: Path) -> None:
    bench = SlowBench()
    study = open_study(tmp_path / "t.jsonl", "s", 0)
    search = Search(GOAL, Space(METHODS, 6), CASES, 2, study)
    search.begin()
    search.run(bench, 1, 60)
    bench.done.clear()
    search.run(bench, 1, 60)
    assert bench.done == []


def test_a_dense_reference_that_fails_ends_the_search(tmp_path: Path) -> None:
    def dense(case: RenderSettings) -> None:
        raise ValueError("a clip must be finite, got NaN or infinity")

    message = "the dense reference failed: a clip must be finite"
    with pytest.raises(RunFailed, match=message):
        Bench(SimpleNamespace(dense=dense), GOAL).prepare(CASES[0])


def test_the_progress_names_the_levers_of_a_trial() -> None:
    names = []

    def render(setting: object, case: RenderSettings, name: str) -> None:
        names.append(name)

    bench = Bench(SimpleNamespace(render=render), GOAL)
    bench._render(replace(Profile(Dense()), cache=FirstBlockCache(threshold=0.1)), CASES[0])
    assert names == ["dense attention + first-block cache"]


@pytest.mark.parametrize(
    ("clips", "levers", "few_tokens", "messages"),
    [
        (
            2,
            None,
            None,
            ["--clips 2 makes the 95 % interval 6.5 times as wide as many clips would"],
        ),
        (5, None, None, []),
        (5, None, "8 tokens are fewer", ["8 tokens are fewer: leave attention out"]),
        (5, ("cache",), "8 tokens are fewer", []),
    ],
    ids=["few-clips", "clips", "small", "small-cache"],
)
def test_doubtful_requests_are_warned_about(recwarn, clips, levers, few_tokens, messages) -> None:
    tuning = Tuning(GOAL, RenderSettings(""), ["a", "b"], clips=clips, levers=levers)
    warn_doubtful(tuning, few_tokens)
    told = [str(warning.message) for warning in recwarn]
    assert [text[: len(begin)] for text, begin in zip(told, messages, strict=True)] == messages
