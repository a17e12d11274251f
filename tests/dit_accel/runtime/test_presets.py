"""Presets: the rules that choose them, what they say, and that a run decides what was unknown before."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from support.composition import render
from support.levers import CASES, NOTHING, SKIPPING, snapshot, tiny

from dit_accel import Dense, InvalidSettings, Profile, SVGEar
from dit_accel.cli import cli
from dit_accel.core.schedule import crossover_tokens
from dit_accel.generation.explain import without_each_lever
from dit_accel.generation.settings import RenderSettings, attention_settings, resolve_profile
from dit_accel.runtime.presets import (
    PRESETS,
    describe_measured,
    is_bundled_model,
    preset_profile,
    read_shipped,
)
from dit_accel.runtime.recipes import ModelTraits, read_profile
from dit_accel_assets import profiles
from dit_accel_eval.settings import Setting

PROMPT = "a red circle moving up on a navy background"
LARGE = {"tokens": 75_600, "device": "cuda"}
CASES_OF_RULES: dict[str, tuple[dict[str, Any], type, bool, str]] = {
    "unknown": ({}, SVGEar, True, "not measured on any pretrained model"),
    "many steps": ({**LARGE, "steps": 50}, SVGEar, True, "not measured on any pretrained model"),
    "8 steps": (
        {**LARGE, "steps": 8},
        SVGEar,
        False,
        "no cache, because 8 steps are fewer than 12",
    ),
    "4 steps": (
        {**LARGE, "steps": 4},
        SVGEar,
        False,
        "no cache, because 4 steps are fewer than 12",
    ),
    "1 step": ({**LARGE, "steps": 1}, Dense, False, "nothing can pay here, so it runs dense"),
    "few tokens": (
        {"steps": 50, "tokens": 100, "device": "cpu"},
        Dense,
        True,
        f"100 tokens are fewer than {crossover_tokens('cpu'):,}",
    ),
    "few of both": (
        {"steps": 4, "tokens": 100, "device": "cpu"},
        Dense,
        False,
        "nothing can pay here, so it runs dense",
    ),
    "no cache": ({**LARGE, "takes_cache": False}, SVGEar, False, "takes none of diffusers'"),
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("case", CASES_OF_RULES)
def test_the_rules(name: str, case: str) -> None:
    facts, method, cached, phrase = CASES_OF_RULES[case]
    profile = preset_profile(name, ModelTraits("wan", **facts))
    assert type(profile.method) is method
    assert (profile.cache is not None) == cached
    preset = profile.provenance["preset"]
    assert preset["name"] == name
    assert phrase in preset["statement"]
    assert "not measured on any pretrained model" in preset["statement"]
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_presets_go_from_near_to_fast() -> None:
    made = [preset_profile(name) for name in PRESETS]
    thresholds = [profile.cache.threshold for profile in made]
    assert thresholds == sorted(thresholds)
    densities = [profile.method.density for profile in made]
    assert densities == sorted(densities, reverse=True)


@pytest.mark.parametrize("name", PRESETS)
def test_a_shipped_profile_says_what_was_measured(name: str) -> None:
    assert set(profiles()) == set(PRESETS)
    shipped = read_shipped(name)
    facts = {"steps": 25, "tokens": 3328, "device": "cpu", "is_bundled": True}
    chosen = preset_profile(name, ModelTraits("wan", **facts))
    assert (chosen.method, chosen.cache) == (shipped.method, shipped.cache)
    assert describe_measured(shipped) in chosen.provenance["preset"]["statement"]
    short = preset_profile(name, ModelTraits("wan", **{**facts, "steps": 4}))
    assert short.cache is None
    small = preset_profile(name, ModelTraits("wan", **{**facts, "tokens": 320}))
    assert (small.method, small.cache) == (Dense(), shipped.cache)


def test_the_bundled_model_is_recognized(wan, tiny_world) -> None:
    assert is_bundled_model(tiny_world.transformer.config)
    assert not is_bundled_model(wan.transformer.config)
    handle = tiny_world.enable_acceleration("balanced")
    assert handle.levers.profile.cache == read_shipped("balanced").cache
    handle.close()


@pytest.mark.parametrize("guidance", CASES)
@pytest.mark.parametrize("kind", ["first-block", "taylorseer", "magcache", "seacache"])
def test_a_cache_rests_in_short_runs(build_wan, kind: str, guidance: str) -> None:
    pipe, case = build_wan(), CASES[guidance]
    plain = render(pipe, case)
    cache = {**SKIPPING[kind], "min_steps": 5}
    with pipe.enable_acceleration({**NOTHING, "cache": cache}) as handle:
        assert torch.equal(render(pipe, case), plain)
        report = handle.report()
        assert report.forwards["transformer"]["skipped"] == 0
        assert f"the {kind} cache rests in runs of fewer than 5 steps" in str(report)
    with pipe.enable_acceleration({**NOTHING, "cache": {**cache, "min_steps": 4}}) as handle:
        assert not torch.equal(render(pipe, case), plain)
        assert handle.report().forwards["transformer"]["skipped"]
    assert torch.equal(render(pipe, case), plain)


@pytest.mark.parametrize(("tuned", "told"), [(4, False), (25, True), (None, False)], ids=str)
def test_a_cache_tuned_for_other_steps_says_so(build_wan, tuned: int | None, told: bool) -> None:
    pipe = build_wan()
    provenance = {} if tuned is None else {"steps": tuned}
    profile = {**NOTHING, "cache": SKIPPING["taylorseer"], "provenance": provenance}
    with pipe.enable_acceleration(profile) as handle:
        render(pipe, CASES["separate"])
        text = str(handle.report())
    remark = "the taylorseer cache was tuned for 25 steps, and this run has 4: tune it again"
    assert (remark in text) is told


def test_a_resting_cache_stays_off_for_guidance(build_wan) -> None:
    pipe = build_wan()
    pipe.enable_perturbed_guidance(2.0)
    guided = render(pipe, CASES["separate"])
    pipe.enable_acceleration({**NOTHING, "cache": {**SKIPPING["first-block"], "min_steps": 5}})
    assert torch.equal(render(pipe, CASES["separate"]), guided)


@pytest.mark.filterwarnings("ignore:the profile also sets cache")
def test_attention_alone_of_a_preset_says_what_is_left_out(wan) -> None:
    for changes, told in (
        ({}, "; without its cache"),
        ({"schedule": {"dense_steps": 0.1}}, "; then changed: schedule; without its cache"),
    ):
        wan.enable_sparse_attention(profile="balanced", **changes)
        render(wan, CASES["separate"])
        (statement,) = (r for r in wan.attention_report().remarks if r.startswith("preset "))
        assert statement.endswith(told)


def test_a_short_run_of_a_preset_is_dense(wan) -> None:
    plain, before = render(wan, CASES["separate"]), snapshot(wan)
    with wan.enable_acceleration("balanced") as handle:
        assert torch.equal(render(wan, CASES["separate"]), plain)
        report = handle.report()
    assert report.calls["sparse"] == 0
    assert f"fewer than {crossover_tokens('cpu')} tokens" in report.fallbacks
    assert any("preset balanced: " in remark for remark in report.remarks)
    assert "rests in runs of fewer than 12 steps" in str(report)
    assert snapshot(wan) == before


def test_a_model_without_caches_gets_the_rest() -> None:
    pipe, run = tiny("sd3")
    plain = run()
    with pipe.enable_acceleration("fast") as handle:
        run()
        assert handle.levers.profile.cache is None
        assert any("takes none of diffusers'" in remark for remark in handle.report().remarks)
    assert torch.equal(run(), plain)


def test_a_cache_that_fails_late_is_left_out(wan) -> None:
    from diffusers import FirstBlockCacheConfig

    wan.transformer.enable_cache(FirstBlockCacheConfig())
    handle = wan.enable_acceleration("balanced")
    assert handle.levers.profile.cache is None
    statement = handle.levers.profile.provenance["preset"]["statement"]
    assert "no cache, because WanTransformer3DModel has a cache already" in statement
    with pytest.raises(InvalidSettings, match="has a cache already"):
        wan.enable_acceleration({"cache": SKIPPING["first-block"]})


def test_a_cache_in_the_blocks_takes_no_least_number_of_steps() -> None:
    with pytest.raises(InvalidSettings, match="a pab cache inside the blocks takes no min_steps"):
        Profile.from_dict({"cache": {**SKIPPING["pab"], "min_steps": 3}})


# On the command line.


def test_the_options_are_the_presets() -> None:
    command = cli.get_command(click.Context(cli), "render")
    (option,) = (p for p in command.params if p.name == "preset")
    assert list(option.type.choices) == list(PRESETS)


def dry_run(*options: str) -> Any:
    return CliRunner().invoke(cli, ["render", PROMPT, "--dry-run", *options])


def test_a_preset_has_the_precedence_of_a_profile() -> None:
    case = RenderSettings("", height=256, width=256, frames=49, steps=25)
    profile = resolve_profile("balanced", case)
    changed = attention_settings(profile, {"method": "svg2"}, {"top_p": 0.7})
    assert changed["method"] == "svg2"
    assert changed["levers"] == profile.levers()
    preset = profile.provenance["preset"]
    assert changed["preset"] == {
        "name": "balanced",
        "statement": f"{preset['statement']}; then changed: method, top_p",
    }
    assert attention_settings(profile, {}, {})["preset"] == preset
    assert read_profile("fast").provenance["preset"]["name"] == "fast"
    setting = Setting.parse("balanced:schedule.dense_steps=0.5", case)
    assert setting.profile.schedule.dense_steps == 0.5
    assert setting.profile.cache == read_shipped("balanced").cache
    both = dry_run("--preset", "fast", "--profile", "x.yaml")
    assert isinstance(both.exception, InvalidSettings)


def test_the_command_line_says_what_a_preset_chose() -> None:
    done = dry_run("--preset", "balanced", "-o", "x.mp4")
    assert done.exit_code == 0, done.output
    assert f"preset balanced: {describe_measured(read_shipped('balanced'))}" in done.stderr
    described = json.loads(done.stdout)
    assert described["preset"]["name"] == "balanced"
    assert described["levers"]["cache"] == read_shipped("balanced").cache.to_dict()
    dense = dry_run("--profile", "balanced", "--size", "smoke", "--steps", "4", "-o", "x.mp4")
    assert "nothing can pay here, so it runs dense" in dense.stderr
    assert json.loads(dense.stdout)["method"] == "dense"
    assert json.loads(dense.stdout)["levers"] is None


def test_the_levers_of_a_preset_are_left_out_one_by_one() -> None:
    levers = {"cache": SKIPPING["first-block"], "linears": {"kind": "int8-weights"}}
    settings = RenderSettings(PROMPT, knobs={"density": 0.1}, precision="int8", levers=levers)
    without = without_each_lever(settings)
    assert list(without) == ["attention", "precision", "cache", "linears"]
    assert without["attention"].method == "dense"
    assert without["attention"].levers == levers
    assert without["cache"].levers == {"linears": {"kind": "int8-weights"}}
    assert without["precision"].precision == "full"
    assert without_each_lever(settings.as_dense()) == {}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_explained(name: str) -> None:
    shown = CliRunner().invoke(cli, ["methods", name]).output
    assert f"svg-ear density={PRESETS[name].density}" in shown
    assert f"first-block threshold={PRESETS[name].threshold}" in shown
    assert "not measured on any pretrained model" in shown
    listed = CliRunner().invoke(cli, ["methods"]).output
    assert f"{name}: {PRESETS[name].about}" in listed
    described = json.loads(CliRunner().invoke(cli, ["methods", name, "--json"]).output)
    bundled = preset_profile(name, ModelTraits("wan", is_bundled=True))
    assert described["bundled"] in bundled.provenance["preset"]["statement"]
