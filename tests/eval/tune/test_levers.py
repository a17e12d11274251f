"""A search over caches, attention, linear layers and compilation: alone, joined, 8 bits last."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from dit_accel import Profile, cli
from dit_accel.core.caches import Cache, FirstBlockCache, MagCache, SeaCache, TaylorSeerCache
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.methods import Dense
from dit_accel_eval.digest import digest
from dit_accel_eval.tune.bench import NoEffect, warm_up_label
from dit_accel_eval.tune.cost import describe_cost, rendered_clips
from dit_accel_eval.tune.describe import describe_idle
from dit_accel_eval.tune.earlier import copy_constants, earlier_figures, earlier_studies
from dit_accel_eval.tune.goal import Goal, Measurements, read_measurements
from dit_accel_eval.tune.ladders import CACHES, cache_ladders, check_lever_names
from dit_accel_eval.tune.levers import Usable, usable_levers
from dit_accel_eval.tune.plan import MOST_JOINT, Plan
from dit_accel_eval.tune.run import Tuning
from dit_accel_eval.tune.search import Search, open_study, read_profile
from dit_accel_eval.tune.space import METHODS, Space
from dit_accel_eval.tune.targets import Target
from dit_accel_eval.tune.validation import describe_profile, validate_winners

CASES = [RenderSettings("p", method="dense", seed=s) for s in range(3)]
FRESH = [RenderSettings("q", method="dense", seed=s) for s in range(6)]
SPACE = Space(
    ("svg-ear",),
    8,
    caches=("first-block", "magcache"),
    linears=("int8-dynamic", "int8-weights"),
    compiles=True,
)
GOAL = Goal((Target.parse("psnr>=30"),))
# Caches of the bench lose much quality above this threshold.
STEEP = 0.45


class LeverBench:
    """A bench whose levers multiply their speed-ups and add their squared errors."""

    def __init__(self, joint_error: float = 1.0) -> None:
        self.joint_error, self.profiles, self.calibrated = joint_error, [], 0

    def calibrate(self, profile: Profile, case: RenderSettings) -> Profile:
        self.calibrated += 1
        cache = MagCache(num_inference_steps=4, mag_ratios={"transformer": (1.0, 0.9, 0.9, 0.9)})
        return Profile(profile.method, cache=cache)

    def prepare(self, case: RenderSettings) -> None:
        pass

    def measure(self, profile: Profile, case: RenderSettings):
        self.profiles.append(profile)
        effects, idle = [], []
        if not isinstance(profile.method, Dense):
            density = profile.method.densities[0]
            effects.append((1 / (0.4 + 0.6 * density), 2e-4 * (1 - density) ** 2 / density))
        cache = profile.cache
        if isinstance(cache, FirstBlockCache) and cache.threshold < 0.15:
            idle.append("the first-block cache skipped 0 of 4 forwards")
        elif isinstance(cache, FirstBlockCache):
            error = 1e-3 * cache.threshold if cache.threshold < STEEP else 0.1
            effects.append((1 + 2 * cache.threshold, error))
        elif isinstance(cache, MagCache):
            assert cache.mag_ratios
            effects.append((1 + cache.threshold, 2e-3 * cache.threshold))
        if profile.linears is not None:
            effects.append((1.1 if profile.linears.kind == "int8-dynamic" else 0.9, 1e-5))
        if profile.compile is not None:
            effects.append((1.05, 0.0))
        if not effects:
            raise NoEffect(idle[0] if idle else "every lever is off")
        speeds, errors = zip(*effects, strict=True)
        factor = self.joint_error if len(effects) > 1 else 1.0
        scatter = np.random.default_rng([case.seed, len(case.prompt)]).normal(0, 0.2)
        decibels = -10 * math.log10(factor * sum(errors) + 1e-9) + scatter
        return math.prod(speeds), {"psnr": decibels}, idle

    def forget_times(self) -> None:
        pass


def fixed_parameters(trial: optuna.trial.FrozenTrial) -> dict | None:
    """Return the parameters that a trial was planned with, or None if the sampler chose them."""
    return trial.system_attrs.get("fixed_params")


def searched(tmp_path: Path, bench: LeverBench, trials: int, goal: Goal = GOAL) -> Search:
    journal = tmp_path / "t.jsonl"
    study = open_study(journal, str(goal), 0)
    study.set_user_attr("clips", "c")
    copy_constants(earlier_studies(journal, "c"), study)
    earlier = earlier_figures(earlier_studies(journal, "c"), goal.metrics)
    search = Search(goal, SPACE, CASES, len(FRESH), study, earlier=earlier)
    search.begin()
    search.run(bench, trials, 60)
    return search


def test_levers_go_alone_to_the_target_and_are_then_shrunk_together(tmp_path: Path) -> None:
    bench = LeverBench()
    search = searched(tmp_path, bench, 30)
    alone = Plan(search).alone()
    boldest = "first_block_threshold 0.4"
    assert alone["first-block"]["setting"] == boldest, "the step before .5 breaks"
    assert {"svg-ear", "magcache", "int8-dynamic", "compile"} <= alone.keys()
    assert {row["clips"] for row in alone.values()} <= {2, 3}, "a trial that cannot win stops early"
    tuned = validate_winners(search, bench, FRESH)
    assert GOAL.targets[0].holds(tuned.winner.values["psnr"])
    joint = tuned.profile
    assert joint.cache is not None
    assert not isinstance(joint.method, Dense)
    assert joint.compile is not None
    assert joint.linears.kind == "int8-dynamic", "int8-weights was slower alone"
    assert tuned.winner.speedup > 1.3 * max(row["speedup"] for row in alone.values())
    assert describe_profile(joint).endswith("int8-dynamic linears + compiled blocks")
    planned = list(filter(None, map(fixed_parameters, search.finished())))
    off = {**SPACE.neutral, "linears": "int8-weights"}
    assert [p for p in planned if p["linears"] == "int8-weights"] == [off], "it did not pay alone"


def test_measured_joint_errors_correct_the_prediction(tmp_path: Path) -> None:
    bench = LeverBench(joint_error=3.0)
    search = searched(tmp_path, bench, 30)
    assert GOAL.targets[0].holds(validate_winners(search, bench, FRESH).winner.values["psnr"])
    plan = Plan(search)
    tried = [(plan.find(effect.parameters), effect) for effect in plan.predicted()]
    assert plan.correction(tried) == pytest.approx(3.0, rel=0.25)
    assert sum(trial is not None for trial, _ in tried) <= MOST_JOINT


def test_a_cliff_beside_the_winner_is_named(tmp_path: Path) -> None:
    search = searched(tmp_path, LeverBench(), 20)
    parameters = {**SPACE.neutral, "cache": "first-block", "first_block_threshold": 0.41}
    (cliff,) = Plan(search).cliffs(parameters)
    assert cliff.startswith("first-block is near a cliff: first_block_threshold 0.41 is in use")
    assert "0.5 alone has psnr 1" in cliff
    assert Plan(search).cliffs({**parameters, "first_block_threshold": 0.2}) == []
    mag = {"cache": "magcache", "magcache_threshold": 0.1, "cache_warm_up": 0.4}
    assert Plan(search).cliffs({**parameters, **mag}) == []


def test_the_best_quality_at_a_speed_joins_levers(tmp_path: Path) -> None:
    goal = Goal((), speedup=2.5)
    search = searched(tmp_path, LeverBench(), 30, goal)
    tuned = validate_winners(search, LeverBench(), [*FRESH, *FRESH, *CASES])
    assert tuned.winner.speedup >= 2.5
    profile = tuned.profile
    assert profile.cache is not None
    assert not isinstance(profile.method, Dense)


def test_a_search_with_levers_resumes_where_it_was_killed(tmp_path: Path) -> None:
    class Dies(LeverBench):
        def measure(self, profile, case):
            if len(self.profiles) == 17:
                raise KeyboardInterrupt
            return super().measure(profile, case)

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, Dies(), 20)
    rest, whole = LeverBench(), LeverBench()
    resumed = searched(tmp_path, rest, 20)
    uninterrupted = searched(tmp_path / "other", whole, 20)
    assert len(rest.profiles) < len(whole.profiles)
    planned = list(itertools.takewhile(bool, map(fixed_parameters, uninterrupted.finished())))
    assert len(planned) > 12
    assert [fixed_parameters(t) for t in resumed.finished()][: len(planned)] == planned
    calibrated = {
        str(replace(p, cache=None, compile=None).to_dict())
        for p in whole.profiles
        if isinstance(p.cache, MagCache)
    }
    assert 0 < whole.calibrated == len(calibrated), "the ratios of an attention are kept"


def test_a_weaker_target_counts_what_an_earlier_search_measured(tmp_path: Path) -> None:
    weaker, other_metric = Goal((Target.parse("psnr>=27"),)), Goal((Target.parse("ssim>=0"),))
    first, second, alone = LeverBench(), LeverBench(), LeverBench()
    strict = searched(tmp_path, first, 20)
    reused = searched(tmp_path, second, 20, weaker)
    fresh = searched(tmp_path / "other", alone, 20, weaker)
    assert 0 < len(second.profiles) < len(alone.profiles)
    assert [t.params for t in reused.finished()] == [t.params for t in fresh.finished()]
    for trial, same in zip(reused.measured(), fresh.measured(), strict=True):
        known = read_measurements(same).speedups
        assert read_measurements(trial).speedups[: len(known)] == known
    whole = {
        str(t.user_attrs["profile"])
        for t in strict.finished()
        if len(t.user_attrs.get("measured", {"speedups": []})["speedups"]) == len(CASES)
    }
    assert not whole & {str(profile.to_dict()) for profile in second.profiles}
    key, measured = next(iter(reused.earlier.items()))
    assert reused.measured_earlier(read_profile_of(reused, key)).to_dict() == measured.to_dict()
    studies = earlier_studies(tmp_path / "t.jsonl", "c")
    assert not earlier_figures(studies, other_metric.metrics)
    assert not earlier_studies(tmp_path / "t.jsonl", "other clips")
    assert sum(map(rendered_clips, reused.finished())) == len(second.profiles)
    assert second.calibrated < alone.calibrated, "ratios of an attention are kept"


def read_profile_of(search: Search, key: str) -> Profile:
    """Return the profile of a digest."""
    trials = (t for t in search.measured() if digest(t.user_attrs["profile"]) == key)
    return read_profile(next(trials))


def test_methods_without_attention_are_refused(tmp_path: Path, capsys) -> None:
    command = ["tune", "--target", "psnr>=30", "--prompts", "tiny-world-held-out"]
    command += ["--levers", "cache", "--out", str(tmp_path / "p.yaml"), "--dry-run"]
    assert cli.main([*command, "--methods", "svg-ear"]) == 2
    assert "--methods has no effect with --levers cache" in capsys.readouterr().err


def test_a_setting_with_other_knobs_than_a_ladder_has_no_next_step() -> None:
    reuse, linear, _ = cache_ladders(["taylorseer"])
    setting = {"cache": "taylorseer", "cache_warm_up": 0.5, "taylorseer_order": 0}
    setting |= {"taylorseer_interval": 3, "method": "dense"}
    assert reuse.holds_common(setting)
    assert not linear.holds_common(setting)
    assert linear.describe(linear.steps[2]) == (
        "cache_warm_up 0.5, taylorseer_interval 2, taylorseer_order 1"
    )


def test_a_lever_that_fails_in_a_run_is_left_out(tmp_path: Path) -> None:
    class Fails(LeverBench):
        def measure(self, profile, case):
            if profile.compile is not None:
                raise RunFailed("compile: no compiler")
            return super().measure(profile, case)

    search = searched(tmp_path, Fails(), 25)
    assert read_profile(search.winners()[0]).compile is None
    assert "compile" not in Plan(search).alone()


@pytest.mark.parametrize("layers", [1, 8], ids=str)
def test_every_point_of_the_space_of_levers_is_a_profile(layers: int) -> None:
    space = Space(METHODS, layers, caches=CACHES, linears=("int8-dynamic",), compiles=True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    steps = [{**space.neutral, **step} for ladder in space.ladders() for step in ladder.steps]
    for parameters in steps:
        study.enqueue_trial(parameters)
    for number in range(len(steps) + 40):
        trial = study.ask()
        profile = space.profile(trial)
        assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
        if number < len(steps):
            assert trial.params == steps[number], "a ladder gives every parameter"


def test_profiles_that_need_another_warm_up_have_other_labels() -> None:
    plain = Profile.from_dict({"method": "dense", "cache": {"kind": "first-block"}})
    compiled = Profile.from_dict({"method": "dense", "compile": {}})
    int8 = Profile.from_dict({"method": "dense", "linears": {"kind": "int8-weights"}})
    assert len({warm_up_label(profile) for profile in (plain, compiled, int8)}) == 3


def test_what_did_nothing_is_counted_by_clip() -> None:
    measured = Measurements()
    for reasons in ([], ["the cache skipped nothing"], ["the cache skipped nothing"]):
        measured.add(1.5, {"psnr": 40.0}, reasons)
    assert describe_idle(measured) == ["in 2 of 3 clips, the cache skipped nothing"]


def test_a_short_search_tries_every_lever(tmp_path: Path) -> None:
    ladders = SPACE.ladders()
    plan = Plan(searched(tmp_path, LeverBench(), len(ladders)))
    assert [plan.count_tried(ladder) for ladder in ladders] == [1] * len(ladders)


def test_the_warm_up_of_a_cache_is_a_share_of_the_steps() -> None:
    space = Space((), 8, caches=("taylorseer", "seacache", "magcache"), num_steps=25)
    warm_ups = {}
    for ladder in space.ladders():
        for step in ladder.steps:
            profile = space.profile(optuna.trial.FixedTrial({**space.neutral, **step}))
            warm_ups.setdefault(ladder.name, set()).add(warm_up_of(profile.cache))
    assert warm_ups["taylorseer"] == {18, 15, 12, 10, 8, 5}
    assert warm_ups["seacache"] == {18, 15, 12, 10, 8, 5}
    assert warm_ups["magcache"] == {0.7, 0.6, 0.5, 0.4, 0.3, 0.2}


def warm_up_of(cache: Cache) -> float:
    """Return the knob that says how many first steps are computed."""
    if isinstance(cache, TaylorSeerCache):
        return cache.disable_cache_before_step
    return cache.retention_steps if isinstance(cache, SeaCache) else cache.retention_ratio


def test_levers_are_chosen_by_name_or_by_what_can_run(tmp_path: Path, monkeypatch) -> None:
    tuning = {"goal": GOAL, "base": RenderSettings(""), "prompts": ["a", "b"]}
    cost = describe_cost(Tuning(**tuning, levers=("cache",)), tmp_path / "p.yaml")
    assert "one clip for each attention that magcache is calibrated under" in cost
    assert "magcache" not in describe_cost(
        Tuning(**tuning, levers=("attention",)), tmp_path / "p.yaml"
    )
    monkeypatch.setattr("dit_accel_eval.tune.levers.shutil.which", lambda _: None)
    describe_cost(Tuning(**tuning), tmp_path / "p.yaml")
    with pytest.raises(InvalidSettings, match="compile needs a C"):
        describe_cost(Tuning(**tuning, levers=("compile",)), tmp_path / "p.yaml")
    with pytest.raises(InvalidSettings, match="--budgets belongs to svg-ear"):
        describe_cost(Tuning(**tuning, levers=("cache",), budgets=1), tmp_path / "p.yaml")
    kinds = ("taylorseer", "int8-dynamic")
    base, card = validate(RenderSettings("a"))
    assert usable_levers(kinds, base, card) == Usable(("taylorseer",), ("int8-dynamic",))
    with pytest.raises(InvalidSettings, match="fp8-dynamic"):
        describe_cost(Tuning(**tuning, levers=("fp8-dynamic",)), tmp_path / "p.yaml")
    with pytest.raises(InvalidSettings, match="unknown lever 'magic'"):
        check_lever_names(("cache", "magic"))


def test_the_command_tunes_levers_of_the_bundled_model(tmp_path: Path, capsys) -> None:
    out = tmp_path / "mine.yaml"
    command = ["tune", "--prompts", "tiny-world-held-out", "--clips", "2", "--validate", "2"]
    command += ["--trials", "2", "--levers", "cache", "--out", str(out)]
    command += ["--height", "64", "--width", "64", "--frames", "5", "--steps", "6"]
    nearest = tmp_path / "mine.nearest.yaml"
    nearest.write_text("{method: dense}  # of an earlier search that found nothing")
    assert cli.main([*command, "--target", "ssim>=-1"]) == 0
    assert not nearest.exists()
    printed = capsys.readouterr().out
    profile = Profile.load(out)
    assert profile.cache is not None
    assert isinstance(profile.method, Dense)
    assert profile.provenance["levers"] in printed
    ((name, figures),) = profile.provenance["alone"].items()
    assert f"{name} alone holds with " in printed
    assert figures["speedup"] > 0
    assert profile.provenance["promise"] == "ssim>=-1"
