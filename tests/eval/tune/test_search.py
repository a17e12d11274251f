"""The search on made-up figures, and the whole command on the bundled model."""

import json
import re
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch

from dit_accel import Profile, cli
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.generation.settings import RenderSettings
from dit_accel_eval.tune.bench import Bench
from dit_accel_eval.tune.cost import describe_cost
from dit_accel_eval.tune.goal import AMPLE, Goal, read_measurements
from dit_accel_eval.tune.plot import draw
from dit_accel_eval.tune.run import Tuning, lock_journal
from dit_accel_eval.tune.search import Search, busy_seconds, open_study, read_profile
from dit_accel_eval.tune.space import METHODS, Space, first_trials
from dit_accel_eval.tune.targets import Target
from dit_accel_eval.tune.validation import intervals, validate_winners

CASES = [RenderSettings("p", method="dense", seed=s) for s in range(4)]
FRESH = [RenderSettings("q", method="dense", seed=s) for s in range(6)]


class FakeBench:
    """A bench with made-up figures: less density is faster and farther from dense."""

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

    def prepare(self, case: RenderSettings) -> None:
        pass

    def forget_times(self) -> None:
        pass


def searched(tmp_path: Path, goal: Goal, trials: int, bench: FakeBench) -> Search:
    study = open_study(tmp_path / "t.jsonl", "s", 0)
    search = Search(goal, Space(METHODS, 6), CASES, len(FRESH), study)
    search.begin()
    search.run(bench, trials, 60)
    return search


def test_the_fastest_profile_that_holds_wins_and_bad_ones_are_stopped(tmp_path: Path) -> None:
    bench = FakeBench()
    goal = Goal((Target.parse("psnr>=36"),))
    search = searched(tmp_path, goal, 40, bench)
    assert len(search.finished()) == 40
    assert bench.rendered < 40 * len(CASES)
    winner = search.winners()[0]
    assert read_profile(winner).method.name == "svg-ear"
    tuned = validate_winners(search, bench, FRESH)
    assert Target.parse("psnr>=36").holds(tuned.winner.values["psnr"])
    assert max(tuned.default.values["psnr"]) < 36, "the shipped default does not hold"
    # The speed-up at the density that just holds.
    exact = 1 / (0.4 + 0.6 * (1 - (45 + 4 - 36) / 20))
    assert tuned.winner.speedup == pytest.approx(exact, rel=0.12)


def test_the_best_quality_at_a_speed_wins(tmp_path: Path) -> None:
    search = searched(tmp_path, Goal((), speedup=1.4), 30, FakeBench())
    winner = search.winners()[0]
    whole = [
        read_measurements(t)
        for t in search.finished()
        if len(read_measurements(t).speedups) == len(CASES)
    ]
    fast = [m for m in whole if m.speedup >= AMPLE * 1.4]
    quality = [np.mean(m.values["psnr"]) for m in fast]
    assert np.mean(read_measurements(winner).values["psnr"]) == max(quality) > min(quality)
    assert validate_winners(search, FakeBench(), FRESH).winner.speedup >= 1.4


def test_the_whole_interval_of_the_speed_up_must_hold(tmp_path: Path) -> None:
    class Wavering(FakeBench):
        """A bench whose fresh clips have the same median speed-up, but two of them are slow."""

        def measure(self, profile, case):
            speed, values = super().measure(profile, case)
            return speed * (0.7 if case.prompt == "q" and case.seed < 2 else 1.0), values

    search = searched(tmp_path, Goal((), speedup=1.4), 20, FakeBench())
    message = r"interval of the speed-up starts at [\d.]+, below 1\.4; .*; the mean"
    with pytest.raises(RunFailed, match=message) as caught:
        validate_winners(search, Wavering(), FRESH)
    assert "98.3 % interval of the speed-up needs more than 6 clips" in str(caught.value)


def test_a_target_out_of_reach_names_the_nearest_setting(tmp_path: Path) -> None:
    search = searched(tmp_path, Goal((Target.parse("psnr>=60"),)), 8, FakeBench())
    tried = r"the nearest of 8 tried \(\d stopped early as out of reach\) was"
    message = rf"no setting holds psnr>=60: {tried} .* with psnr .* clips\) at [\d.]+ times"
    with pytest.raises(RunFailed, match=message):
        validate_winners(search, FakeBench(), FRESH)


def test_a_winner_that_fails_on_fresh_clips_is_named_with_its_figures(tmp_path: Path) -> None:
    search = searched(tmp_path, Goal((Target.parse("psnr>=36"),)), 20, FakeBench())
    message = r"no setting holds psnr>=36: svg-ear on fresh clips: psnr .*, whose 95 % interval of psnr starts at"
    with pytest.raises(RunFailed, match=message):
        validate_winners(search, FakeBench(ceiling=30.0), FRESH)


def test_frames_that_are_not_finite_end_a_trial_and_not_the_search(tmp_path: Path) -> None:
    class Broken(FakeBench):
        def measure(self, profile, case):
            if profile.method.name == "svg-ear":
                raise ValueError("a clip must be finite, got NaN or infinity")
            return super().measure(profile, case)

    search = searched(tmp_path, Goal((Target.parse("psnr>=33"),)), 12, Broken())
    assert len(search.finished()) == 12
    assert read_profile(search.winners()[0]).method.name != "svg-ear"
    lines = draw(search).axes[0].lines
    assert sum(len(line.get_xdata()) == 1 for line in lines) >= len(search.measured())
    assert len(search.measured()) < 12


def test_the_error_says_why_no_setting_could_be_measured(tmp_path: Path) -> None:
    class Full(FakeBench):
        def measure(self, profile, case):
            raise torch.OutOfMemoryError("CUDA out of memory")

    search = searched(tmp_path, Goal((Target.parse("psnr>=33"),)), 3, Full())
    with pytest.raises(RunFailed, match="none could be measured: CUDA out of memory"):
        validate_winners(search, Full(), FRESH)


def test_validation_goes_on_if_a_winner_or_the_default_breaks_on_a_fresh_clip(
    tmp_path: Path,
) -> None:
    class Breaks(FakeBench):
        """The first winner and the shipped default give NaN on the third fresh clip."""

        def measure(self, profile, case):
            if case == FRESH[2] and profile in (first, Profile()):
                raise ValueError("a clip must be finite, got NaN or infinity")
            return super().measure(profile, case)

    search = searched(tmp_path, Goal((Target.parse("psnr>=33"),)), 30, FakeBench())
    first, second = map(read_profile, search.winners()[:2])
    tuned = validate_winners(search, Breaks(), FRESH)
    assert (tuned.profile, tuned.attempts) == (second, 2)
    assert tuned.default.failed == "a clip must be finite, got NaN or infinity on 'q', seed 2"
    assert intervals(search.goal, tuned.default) == {"failed": tuned.default.failed}


class FakeRunner:
    """A runner whose clips have no sparse call."""

    def dense(self, case: RenderSettings) -> SimpleNamespace:
        return SimpleNamespace(
            frames=np.zeros((1, 16, 16, 3), np.float32), seconds={"denoise": 2.0}
        )

    def render(self, setting: object, case: RenderSettings, name: str) -> SimpleNamespace:
        clip = self.dense(case)
        reason = "0 of 24 calls were sparse: fewer than 9 tokens"
        clip.attention = SimpleNamespace(
            no_effect=reason, calls={"sparse": 0}, levers={}, idle_levers=[]
        )
        return clip

    def forget_times(self) -> None:
        pass


def test_settings_without_a_sparse_call_have_no_speed_up_and_never_win(tmp_path: Path) -> None:
    goal = Goal((Target.parse("psnr>=1"),), speedup=0.01)
    search = searched(tmp_path, goal, 3, Bench(FakeRunner(), goal))
    assert search.winners() == []
    reason = "none could be measured: 0 of 24 calls were sparse: fewer than 9 tokens"
    with pytest.raises(RunFailed, match=reason):
        validate_winners(search, Bench(FakeRunner(), goal), FRESH)


def test_busy_seconds_count_parallel_trials_once() -> None:
    def ran(start: int, end: int) -> optuna.trial.FrozenTrial:
        trial = optuna.trial.create_trial(value=0.0)
        trial.datetime_start, trial.datetime_complete = (
            datetime(2026, 1, 1, 0, 0, second) for second in (start, end)
        )
        return trial

    assert busy_seconds([]) == 0
    assert busy_seconds([ran(20, 25), ran(0, 10), ran(5, 8), ran(7, 12)]) == 17


def test_a_profile_slower_than_dense_does_not_win(tmp_path: Path) -> None:
    class Slow(FakeBench):
        def measure(self, profile, case):
            speed, values = super().measure(profile, case)
            return 0.5 * speed, values

    search = searched(tmp_path, Goal((Target.parse("psnr>=20"),)), 8, Slow())
    with pytest.raises(RunFailed, match="which is slower than dense attention"):
        validate_winners(search, Slow(), FRESH)


def test_a_killed_search_resumes_from_its_journal(tmp_path: Path) -> None:
    goal = Goal((Target.parse("psnr>=36"),))

    class Dies(FakeBench):
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
    killed = study.get_trials(states=(optuna.trial.TrialState.FAIL,))[0].params
    bench = FakeBench()
    search = searched(tmp_path, goal, 12, bench)
    assert len(search.finished()) == 12
    assert bench.rendered <= (12 - done) * len(CASES)
    assert killed in [t.params for t in search.finished()]
    assert len(searched(tmp_path, goal, 13, bench).finished()) == 13, "nothing is done twice"


def test_trials_differ_between_processes_and_after_a_restart(tmp_path: Path) -> None:
    goal, journal = Goal((Target.parse("psnr>=36"),)), tmp_path / "t.jsonl"
    searched(tmp_path, goal, 6, FakeBench())  # These are the first trials of the space.
    suggested = []
    for rank in (0, 1):
        study = open_study(journal, "s", 0, rank)
        trial = study.ask()
        Space(METHODS, 6).profile(trial)
        suggested.append(trial.params)
    tried = [t.params for t in searched(tmp_path, goal, 9, FakeBench()).finished()]
    study = open_study(journal, "s", 0)
    trial = study.ask()
    Space(METHODS, 6).profile(trial)
    assert suggested[0] != suggested[1]
    assert trial.params not in tried
    assert len({str(sorted(p.items())) for p in tried}) == len(tried)


def test_a_killed_validation_resumes(tmp_path: Path) -> None:
    class Dies(FakeBench):
        def measure(self, profile, case):
            if self.rendered == 7:
                raise KeyboardInterrupt
            return super().measure(profile, case)

    search = searched(tmp_path, Goal((Target.parse("psnr>=36"),)), 20, FakeBench())
    with pytest.raises(KeyboardInterrupt):
        validate_winners(search, Dies(), FRESH)
    search.study = open_study(tmp_path / "t.jsonl", "s", 0)
    rest, whole = FakeBench(), FakeBench()
    resumed = validate_winners(search, rest, FRESH)
    search.study = searched(tmp_path / "other", search.goal, 20, FakeBench()).study
    uninterrupted = validate_winners(search, whole, FRESH)
    assert resumed == uninterrupted
    assert rest.rendered == whole.rendered - 7


def test_a_second_search_on_the_same_trials_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "new" / "t.jsonl"
    with lock_journal(journal):
        message = "another tune is writing to .*t.jsonl"
        with pytest.raises(InvalidSettings, match=message), lock_journal(journal):
            raise AssertionError("both searches run")
    with lock_journal(journal):
        pass


@pytest.mark.parametrize("layers", [1, 2, 3, 8], ids=str)
def test_every_point_of_the_space_is_a_profile(layers: int) -> None:
    space = Space(METHODS, layers)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for parameters in first_trials(space):
        study.enqueue_trial(parameters)
    for number in range(60):
        trial = study.ask()
        profile = space.profile(trial)
        assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
        if number < len(first_trials(space)):
            assert first_trials(space)[number].items() <= trial.params.items()


def test_search_and_validation_share_no_prompt_and_no_seed() -> None:
    goal = Goal((Target.parse("psnr>=30"),))
    tuning = Tuning(goal, RenderSettings(""), ["a", "b", "c"], clips=3, validation=3)
    cases, fresh = tuning.cases()
    assert [(case.prompt, case.seed) for case in cases] == [("a", 0), ("a", 1), ("a", 2)]
    assert [(case.prompt, case.seed) for case in fresh] == [("b", 1000), ("c", 1000), ("b", 1001)]
    assert not {c.prompt for c in cases} & {c.prompt for c in fresh}
    assert not {c.seed for c in cases} & {c.seed for c in fresh}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"goal": Goal(())}, "nothing to tune for"),
        ({"prompts": ["a", "a"]}, "at least two prompts"),
        ({"clips": 1}, "two clips to search on"),
        ({"methods": ("radial",)}, "cannot tune method 'radial': choose from svg2"),
        ({"goal": Goal((), speedup=2.0), "validation": 5}, "needs 8 clips to validate on, got 5"),
        (
            {
                "goal": Goal((Target.parse("ssim>=0"),)),
                "base": RenderSettings("", height=10, width=64),
            },
            "target ssim: SSIM needs at least 11 x 11 pixels, and the frames have 10 x 64",
        ),
        ({"goal": Goal((), speedup=0.0)}, "--speedup must be above 0, got 0"),
        ({"goal": Goal((Target.parse("ssim>=1.5"),))}, "ssim>=1.5 cannot hold"),
        ({"budgets": 6}, "--budgets must be between 0 and the 5 clips of the search, got 6"),
        ({"budgets": 1, "methods": ("svg2",)}, "--budgets belongs to svg-ear"),
    ],
    ids=[
        "no-goal",
        "one-prompt",
        "one-clip",
        "method",
        "few",
        "small",
        "no-speed",
        "beyond-perfect",
        "many-budgets",
        "no-svg-ear",
    ],
)
def test_invalid_requests_are_refused_first(tmp_path: Path, changes: dict, message: str) -> None:
    arguments = {
        "goal": Goal((Target.parse("psnr>=30"),)),
        "base": RenderSettings(""),
        "prompts": ["a", "b"],
    }
    with pytest.raises(InvalidSettings, match=message):
        describe_cost(Tuning(**{**arguments, **changes}), tmp_path / "p.yaml")
    with pytest.raises(InvalidSettings, match="must end in"):
        describe_cost(Tuning(**arguments), tmp_path / "p.txt")


def test_the_command_on_the_bundled_model(tmp_path: Path, capsys, monkeypatch) -> None:
    size = ["--height", "64", "--width", "64", "--frames", "5", "--steps", "3"]
    out = tmp_path / "mine.yaml"
    command = ["tune", "--prompts", "tiny-world-held-out", "--clips", "3", "--validate", "8"]
    command += ["--trials", "3", "--levers", "attention", "--methods", "svg-ear"]
    command += ["--out", str(out), *size]
    assert cli.main([*command, "--target", "ssim>=-1", "--speedup", "0.01", "--dry-run"]) == 0
    assert "at most 68 clips" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert cli.main([*command, "--target", "ssim>=-1", "--speedup", "0.01"]) == 0
    printed = capsys.readouterr().out
    assert "times the speed of dense" in printed
    assert "the shipped default on the same clips" in printed
    assert re.search(
        r"fastest dense attention of this machine: (native|plain products) \(", printed
    )
    profile = Profile.load(out)
    promise = profile.provenance
    assert promise["promise"] == "speedup>=0.01, ssim>=-1"
    speed = promise["measured"]["speedup"]
    assert 0.01 <= speed["low"] <= speed["median"] <= speed["high"]
    assert -1 <= promise["measured"]["ssim"]["low"] <= promise["measured"]["ssim"]["mean"] <= 1
    assert (promise["clips"], promise["trials"], promise["height"]) == (8, 3, 64)
    assert (tmp_path / "mine.png").exists()
    assert cli.main([*command, "--target", "ssim>=-1", "--speedup", "0.01", "--dry-run"]) == 0
    assert "minutes" in capsys.readouterr().out
    kept_trial = "the journal holds this trial"
    monkeypatch.setattr(Search, "objective", lambda *_: pytest.fail(kept_trial))
    assert cli.main([*command, "--target", "ssim>=-1", "--speedup", "0.01"]) == 0
    monkeypatch.undo()
    before = out.read_text()
    assert cli.main([*command, "--target", "psnr>=60"]) == 1
    nearest, told = tmp_path / "mine.nearest.yaml", capsys.readouterr().err
    assert "no setting holds psnr>=60: the nearest" in told
    assert f"not validated: render --profile {nearest}" in told
    kept = Profile.load(nearest).provenance
    assert kept["not_validated"] == "the nearest to psnr>=60: no setting of the search held it"
    assert "promise" not in kept
    assert kept["searched"]["psnr"]["mean"] < 60
    assert out.read_text() == before
