"""The search on planted figures, and the whole command on the bundled model."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

import dit_accel_eval.tune.run
from dit_accel import Profile, cli
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.generation.settings import RenderSettings
from dit_accel_eval.tune.plot import draw
from dit_accel_eval.tune.run import Tuning, alone, cost
from dit_accel_eval.tune.search import (
    AMPLE,
    Goal,
    Search,
    in_turn,
    measured_of,
    open_study,
    profile_of,
    spent,
)
from dit_accel_eval.tune.space import METHODS, Space, starts
from dit_accel_eval.tune.targets import Target
from dit_accel_eval.tune.validation import best, figures

CASES = [RenderSettings("p", method="dense", seed=s) for s in range(4)]
FRESH = [RenderSettings("q", method="dense", seed=s) for s in range(6)]


class Planted:
    """Figures that follow from a profile: less density is faster and farther from dense."""

    def __init__(self, ceiling: float = 45.0) -> None:
        self.ceiling, self.rendered = ceiling, 0

    def measure(self, profile: Profile, case: RenderSettings) -> tuple[float, dict[str, float]]:
        self.rendered += 1
        method = profile.method
        density = getattr(method, "density", None) or method.min_key_share
        work = profile.schedule.dense_steps + (1 - profile.schedule.dense_steps) * density
        bonus = 4.0 if method.name == "svg-ear" else 0.0
        scatter = np.random.default_rng([case.seed, len(case.prompt)]).normal(0, 0.5)
        return 1 / (0.4 + 0.6 * work), {"psnr": self.ceiling - 20 * (1 - work) + bonus + scatter}

    def forget_times(self) -> None:
        pass


def searched(tmp_path: Path, goal: Goal, trials: int, bench: Planted) -> Search:
    study = open_study(tmp_path / "t.jsonl", "s", 0)
    search = Search(goal, Space(METHODS, 6), CASES, len(FRESH), study)
    search.begin()
    search.run(bench, trials, 60)
    return search


def test_the_fastest_that_holds_is_found_and_bad_ones_are_given_up(tmp_path: Path) -> None:
    bench = Planted()
    goal = Goal((Target.parse("psnr>=36"),))
    search = searched(tmp_path, goal, 40, bench)
    assert len(search.finished()) == 40
    assert bench.rendered < 40 * len(CASES)
    winner = search.winners()[0]
    assert profile_of(winner).method.name == "svg-ear"
    tuned = best(search, bench, FRESH)
    assert Target.parse("psnr>=36").holds(tuned.winner.values["psnr"])
    assert max(tuned.default.values["psnr"]) < 36  # what the shipped default is measured at
    exact = 1 / (0.4 + 0.6 * (1 - (45 + 4 - 36) / 20))  # the density that just holds
    assert tuned.winner.speedup == pytest.approx(exact, rel=0.12)


def test_the_nearest_to_dense_at_a_speed(tmp_path: Path) -> None:
    search = searched(tmp_path, Goal((), speedup=1.4), 30, Planted())
    winner = search.winners()[0]
    whole = [
        measured_of(t) for t in search.finished() if len(measured_of(t).speedups) == len(CASES)
    ]
    fast = [m for m in whole if m.speedup >= AMPLE * 1.4]
    quality = [np.mean(m.values["psnr"]) for m in fast]
    assert np.mean(measured_of(winner).values["psnr"]) == max(quality) > min(quality)
    assert best(search, Planted(), FRESH).winner.speedup >= 1.4


def test_the_whole_interval_of_the_speed_up_holds(tmp_path: Path) -> None:
    class Wavering(Planted):
        """As fast as the search saw, in the median, but not on every clip."""

        def measure(self, profile, case):
            speed, values = super().measure(profile, case)
            return speed * (0.7 if case.prompt == "q" and case.seed < 2 else 1.0), values

    search = searched(tmp_path, Goal((), speedup=1.4), 20, Planted())
    with pytest.raises(RunFailed, match=r"whose 95 % interval does not hold speedup>=1\.4"):
        best(search, Wavering(), FRESH)


def test_out_of_reach_says_what_was_nearest(tmp_path: Path) -> None:
    search = searched(tmp_path, Goal((Target.parse("psnr>=60"),)), 8, Planted())
    message = r"no setting holds psnr>=60: the nearest of 8 tried was .* with psnr .* clips\) at [\d.]+ times"
    with pytest.raises(RunFailed, match=message):
        best(search, Planted(), FRESH)


def test_a_winner_that_fails_on_fresh_clips_is_told_with_its_figures(tmp_path: Path) -> None:
    search = searched(tmp_path, Goal((Target.parse("psnr>=36"),)), 20, Planted())
    message = r"no setting holds psnr>=36: svg-ear on fresh clips: psnr .*, whose 95 % interval does not hold"
    with pytest.raises(RunFailed, match=message):
        best(search, Planted(ceiling=30.0), FRESH)


def test_frames_that_are_not_finite_end_a_trial_not_the_search(tmp_path: Path) -> None:
    class Broken(Planted):
        def measure(self, profile, case):
            if profile.method.name == "svg-ear":
                raise ValueError("a clip must be finite, got NaN or infinity")
            return super().measure(profile, case)

    search = searched(tmp_path, Goal((Target.parse("psnr>=33"),)), 12, Broken())
    assert len(search.finished()) == 12
    assert profile_of(search.winners()[0]).method.name != "svg-ear"
    lines = draw(search).axes[0].lines
    assert sum(len(line.get_xdata()) == 1 for line in lines) >= len(search.measured())
    assert len(search.measured()) < 12


def test_all_that_fail_are_told_with_why(tmp_path: Path) -> None:
    class Full(Planted):
        def measure(self, profile, case):
            raise torch.OutOfMemoryError("CUDA out of memory")

    search = searched(tmp_path, Goal((Target.parse("psnr>=33"),)), 3, Full())
    with pytest.raises(RunFailed, match="none could be measured: CUDA out of memory"):
        best(search, Full(), FRESH)


def test_a_winner_or_a_default_that_breaks_on_a_fresh_clip_is_no_end(tmp_path: Path) -> None:
    class Breaks(Planted):
        """The first winner and the shipped default give NaN on the third fresh clip."""

        def measure(self, profile, case):
            if case == FRESH[2] and profile in (first, Profile()):
                raise ValueError("a clip must be finite, got NaN or infinity")
            return super().measure(profile, case)

    search = searched(tmp_path, Goal((Target.parse("psnr>=33"),)), 30, Planted())
    first, second = map(profile_of, search.winners()[:2])
    tuned = best(search, Breaks(), FRESH)
    assert (tuned.profile, tuned.attempts) == (second, 2)
    assert tuned.default.failed == "a clip must be finite, got NaN or infinity on 'q', seed 2"
    assert figures(search.goal, tuned.default) == {"failed": tuned.default.failed}


def test_time_counts_once_however_many_processes_used_it() -> None:
    def ran(start: int, end: int) -> optuna.trial.FrozenTrial:
        trial = optuna.trial.create_trial(value=0.0)
        trial.datetime_start, trial.datetime_complete = (
            datetime(2026, 1, 1, 0, 0, second) for second in (start, end)
        )
        return trial

    assert spent([]) == 0
    assert spent([ran(20, 25), ran(0, 10), ran(5, 8), ran(7, 12)]) == 17


def test_a_profile_slower_than_dense_is_no_answer(tmp_path: Path) -> None:
    class Slow(Planted):
        def measure(self, profile, case):
            speed, values = super().measure(profile, case)
            return 0.5 * speed, values

    search = searched(tmp_path, Goal((Target.parse("psnr>=20"),)), 8, Slow())
    with pytest.raises(RunFailed, match="which dense attention is faster than"):
        best(search, Slow(), FRESH)


def test_a_killed_search_goes_on_in_its_journal(tmp_path: Path) -> None:
    goal = Goal((Target.parse("psnr>=36"),))

    class Dies(Planted):
        def measure(self, profile, case):
            if self.rendered == 9:
                raise KeyboardInterrupt
            return super().measure(profile, case)

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, goal, 12, Dies())
    study = open_study(tmp_path / "t.jsonl", "s", 0)
    done = len(
        study.get_trials(states=(optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED))
    )
    assert 0 < done < 12
    given_up = study.get_trials(states=(optuna.trial.TrialState.FAIL,))[0].params
    again = Planted()
    search = searched(tmp_path, goal, 12, again)
    assert len(search.finished()) == 12
    assert again.rendered <= (12 - done) * len(CASES)
    assert given_up in [t.params for t in search.finished()]
    assert len(searched(tmp_path, goal, 13, again).finished()) == 13, "nothing is done twice"


def test_what_is_tried_differs_by_process_and_after_a_restart(tmp_path: Path) -> None:
    goal, journal = Goal((Target.parse("psnr>=36"),)), tmp_path / "t.jsonl"
    searched(tmp_path, goal, 6, Planted())  # the starts
    asked = []
    for rank in (0, 1):
        study = open_study(journal, "s", 0, rank)
        trial = study.ask()
        Space(METHODS, 6).profile(trial)
        asked.append(trial.params)
    tried = [t.params for t in searched(tmp_path, goal, 9, Planted()).finished()]
    study = open_study(journal, "s", 0)
    trial = study.ask()
    Space(METHODS, 6).profile(trial)
    assert asked[0] != asked[1]
    assert trial.params not in tried
    assert len({str(sorted(p.items())) for p in tried}) == len(tried)


def test_a_killed_validation_goes_on_too(tmp_path: Path) -> None:
    class Dies(Planted):
        def measure(self, profile, case):
            if self.rendered == 7:
                raise KeyboardInterrupt
            return super().measure(profile, case)

    search = searched(tmp_path, Goal((Target.parse("psnr>=36"),)), 20, Planted())
    with pytest.raises(KeyboardInterrupt):
        best(search, Dies(), FRESH)
    search.study = open_study(tmp_path / "t.jsonl", "s", 0)
    rest, whole = Planted(), Planted()
    resumed = best(search, rest, FRESH)
    search.study = searched(tmp_path / "other", search.goal, 20, Planted()).study
    uninterrupted = best(search, whole, FRESH)
    assert resumed == uninterrupted
    assert rest.rendered == whole.rendered - 7


def test_a_second_search_on_the_same_trials_is_refused(tmp_path: Path) -> None:
    with alone(tmp_path / "new" / "t.jsonl"):
        refused = "another tune is writing to .*t.jsonl"
        with pytest.raises(InvalidSettings, match=refused), alone(tmp_path / "new" / "t.jsonl"):
            raise AssertionError("both went in")
    with alone(tmp_path / "new" / "t.jsonl"):
        pass


@pytest.mark.parametrize("layers", [1, 2, 3, 8], ids=str)
def test_every_point_of_the_space_is_a_profile(layers: int) -> None:
    space = Space(METHODS, layers)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for parameters in starts(space):
        study.enqueue_trial(parameters)
    for number in range(60):
        trial = study.ask()
        profile = space.profile(trial)
        assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
        if number < len(starts(space)):
            assert starts(space)[number].items() <= trial.params.items()


def test_clips_of_search_and_validation_share_nothing() -> None:
    assert list(in_turn(["a", "b"], 3, 5)) == [("a", 5), ("b", 5), ("a", 6)]
    goal = Goal((Target.parse("psnr>=30"),))
    cases, fresh = Tuning(goal, RenderSettings(""), ["a", "b", "c"], clips=3).cases()
    assert len(fresh) == 20
    assert not {c.prompt for c in cases} & {c.prompt for c in fresh}
    assert not {c.seed for c in cases} & {c.seed for c in fresh}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"goal": Goal(())}, "nothing to tune for"),
        ({"prompts": ["a", "a"]}, "at least two prompts"),
        ({"clips": 1}, "two clips to search on"),
        ({"methods": ("radial",)}, "cannot tune method 'radial': choose from svg2"),
        ({"goal": Goal((), speedup=2.0), "validation": 5}, "needs 7 clips to validate on, got 5"),
        ({"goal": Goal((), speedup=0.0)}, "--speedup must be above 0, got 0"),
        ({"goal": Goal((Target.parse("ssim>=1.5"),))}, "ssim>=1.5 cannot be held"),
    ],
    ids=["no-goal", "one-prompt", "one-clip", "method", "few", "no-speed", "beyond-perfect"],
)
def test_what_cannot_work_is_told_first(tmp_path: Path, changes: dict, message: str) -> None:
    given = {
        "goal": Goal((Target.parse("psnr>=30"),)),
        "base": RenderSettings(""),
        "prompts": ["a", "b"],
    }
    with pytest.raises(InvalidSettings, match=message):
        cost(Tuning(**{**given, **changes}), tmp_path / "p.yaml")
    with pytest.raises(InvalidSettings, match="must end in"):
        cost(Tuning(**given), tmp_path / "p.txt")


def test_the_command_on_the_bundled_model(tmp_path: Path, capsys, monkeypatch) -> None:
    size = ["--height", "64", "--width", "64", "--frames", "5", "--steps", "3"]
    out = tmp_path / "mine.yaml"
    command = ["tune", "--prompts", "tiny-world-held-out", "--clips", "3", "--validate", "7"]
    command += ["--trials", "3", "--methods", "svg-ear", "--out", str(out), *size]
    assert cli.main([*command, "--target", "ssim>=-1", "--speedup", "0.01", "--dry-run"]) == 0
    assert "at most 61 clips" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert cli.main([*command, "--target", "ssim>=-1", "--speedup", "0.01"]) == 0
    shown = capsys.readouterr().out
    assert "times the speed of dense" in shown
    assert "the shipped default there" in shown
    profile = Profile.load(out)
    promise = profile.provenance
    assert promise["promise"] == "speedup>=0.01, ssim>=-1"
    speed = promise["measured"]["speedup"]
    assert 0.01 <= speed["low"] <= speed["median"] <= speed["high"]
    assert -1 <= promise["measured"]["ssim"]["low"] <= promise["measured"]["ssim"]["mean"] <= 1
    assert (promise["clips"], promise["trials"], promise["height"]) == (7, 3, 64)
    assert (tmp_path / "mine.png").exists()
    assert cli.main([*command, "--target", "ssim>=-1", "--speedup", "0.01", "--dry-run"]) == 0
    assert "minutes" in capsys.readouterr().out

    def refuse(*_: object) -> None:
        raise AssertionError("tried again what the journal holds")

    monkeypatch.setattr(dit_accel_eval.tune.search.Search, "objective", refuse)
    assert cli.main([*command, "--target", "ssim>=-1", "--speedup", "0.01"]) == 0
    monkeypatch.undo()
    before = out.read_text()
    assert cli.main([*command, "--target", "psnr>=99"]) == 1
    assert "no setting holds psnr>=99: the nearest" in capsys.readouterr().err
    assert out.read_text() == before
