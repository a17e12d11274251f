"""The sections of a profile besides attention: what they hold, and what they refuse."""

import dataclasses

import diffusers
import pytest

from dit_accel import Dense, InvalidSettings, Profile
from dit_accel.core.caches import CACHES, MagCache

SECTIONS = {
    "cache": {"kind": "first-block", "threshold": 0.2},
    "linears": {"kind": "int8-dynamic"},
    "compile": {"backend": "aot_eager", "fullgraph": True},
}


def test_a_file_of_before_has_no_levers(tmp_path) -> None:
    Profile().save(tmp_path / "old.yaml")
    assert not {"cache", "linears", "compile"} & Profile().to_dict().keys()
    assert Profile.load(tmp_path / "old.yaml") == Profile()
    assert not Profile().has_levers


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("kind", CACHES)
def test_a_file_holds_every_section(tmp_path, kind: str, suffix: str) -> None:
    cache = {"kind": kind}
    if kind == "magcache":
        cache |= {"num_inference_steps": 2, "mag_ratios": {"transformer": [1.0, 0.97]}}
    values = {**SECTIONS, "method": "dense", "compile": {}, "cache": cache}
    profile = Profile.from_dict(values)
    profile.save(tmp_path / f"all{suffix}")
    assert Profile.load(tmp_path / f"all{suffix}") == profile
    assert profile.cache == Profile.from_dict(profile.to_dict()).cache


@pytest.mark.parametrize(
    ("timesteps", "fits"),
    [
        *(((1000.0, 500.0), True), ((990.0, 519.0), True), ((), True)),
        *(((1000.0, 521.0), False), ((1000.0,), False), ((1000.0, 500.0, 1.0), False)),
    ],
    ids=str,
)
def test_ratios_fit_timesteps_within_2_percent_of_the_largest(timesteps, fits: bool) -> None:
    ratios = {"mag_ratios": {"transformer": (1.0, 0.9)}, "num_inference_steps": 2}
    assert MagCache(timesteps=(1000.0, 500.0), **ratios).fits(timesteps) is fits
    assert MagCache(**ratios).fits(timesteps)


@pytest.mark.parametrize("kind", CACHES)
def test_knobs_are_those_of_diffusers(kind: str) -> None:
    config = getattr(diffusers, CACHES[kind].config)
    theirs = {field.name: field for field in dataclasses.fields(config)}
    for knob in dataclasses.fields(CACHES[kind]):
        assert (knob.name in theirs) != (knob.name in CACHES[kind].ours)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(
            {"cache": {"kind": "teacache"}}, "unknown cache kind 'teacache': choose from", id="kind"
        ),
        pytest.param({"cache": {}}, "unknown cache kind None", id="no kind"),
        pytest.param({"cache": 3}, "profile cache must hold keys and values", id="no mapping"),
        pytest.param(
            {"cache": {"kind": "first-block", "warmup": 1}},
            "unknown first-block cache knob 'warmup': choose from min_steps, threshold",
            id="knob",
        ),
        pytest.param(
            {"cache": {"kind": "first-block", "threshold": -1}},
            "threshold must be at least 0",
            id="range",
        ),
        pytest.param(
            {"cache": {"kind": "first-block", "threshold": float("nan")}}, "finite", id="nan"
        ),
        pytest.param(
            {"cache": {"kind": "taylorseer", "cache_identifiers": ["a"]}},
            "use_lite_mode ignores identifiers",
            id="identifiers",
        ),
        pytest.param(
            {"cache": {"kind": "pab", "spatial_attention_block_skip_range": None}},
            "skips nothing",
            id="no range",
        ),
        pytest.param(
            {"cache": {"kind": "first-block"}, "guard": {"mode": "on"}},
            "guard 'on' runs forwards again, which a first-block cache would count",
            id="guard",
        ),
        pytest.param({"cache": {"kind": "fastercache"}}, "svg-ear would mix up samples", id="rows"),
        pytest.param(
            {"cache": {"kind": "pab"}, "compile": {"fullgraph": True}},
            "a pab cache decides inside the blocks",
            id="graph",
        ),
        pytest.param(
            {"linears": {"kind": "fp8-storage"}, "compile": {}},
            "fp8-storage casts weights by hooks",
            id="casting",
        ),
        pytest.param({"linears": {"kind": "int4"}}, "unknown linears kind 'int4'", id="linears"),
        pytest.param({"linears": {}}, "unknown linears kind None", id="no linears kind"),
        pytest.param({"compile": {"mod": "x"}}, "unknown compile 'mod'", id="compile"),
        pytest.param(
            {"compile": {"mode": "reduce-overhead"}}, "records CUDA graphs", id="CUDA graphs"
        ),
    ],
)
def test_refuses_by_name(values: dict, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        Profile.from_dict(values)


def test_a_cache_of_rows_goes_with_dense_attention() -> None:
    assert Profile.from_dict({"method": "dense", "cache": {"kind": "fastercache"}}).has_levers
    assert isinstance(Profile(Dense(), cache=MagCache()).cache, MagCache)
