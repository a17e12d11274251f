"""Levers of a render: refused by name before weights are loaded, applied, reported and undone."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dit_accel import InvalidSettings, Profile
from dit_accel.cli import cli
from dit_accel.generation.batch import BatchOptions, plan_jobs
from dit_accel.generation.explain import explain, format_levers
from dit_accel.generation.loading import read_card
from dit_accel.generation.render import build_record, render
from dit_accel.generation.settings import RenderSettings, attention_settings
from dit_accel.generation.validation import check_sharing, validate
from dit_accel.runtime.active_sessions import session_of
from dit_accel_eval.metrics.psnr import psnr

SETTINGS = RenderSettings("a red circle", method="dense", height=32, width=32, frames=5, steps=4)
RATIOS = {"kind": "magcache", "num_inference_steps": 9, "mag_ratios": {"transformer": [1.0] * 9}}
CACHE = {"kind": "first-block", "threshold": 0.1}


def with_levers(**levers: Any) -> RenderSettings:
    return RenderSettings(
        "a red circle moving up on a navy background", method="dense", levers=levers
    )


@pytest.mark.parametrize(
    ("changes", "levers", "message"),
    [
        pytest.param({}, {"speed": {}}, "unknown lever 'speed'", id="lever"),
        pytest.param(
            {}, {"cache": {"kind": "magcache"}}, "needs mag_ratios of transformer", id="ratios"
        ),
        pytest.param({"steps": 8}, {"cache": RATIOS}, "in 9 steps, and --steps is 8", id="steps"),
        pytest.param({}, {"cache": {"kind": "fastercache"}}, "is_guidance_distilled", id="rows"),
        pytest.param({}, {"linears": {"kind": "fp8-dynamic"}}, "needs a CUDA device", id="device"),
        pytest.param(
            {"guard": "on", "method": "svg2"},
            {"cache": CACHE},
            "guard 'on' runs forwards again",
            id="guard",
        ),
    ],
)
def test_refused_before_loading(changes: dict, levers: dict, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        validate(replace(with_levers(**levers), **changes))


def test_a_cache_on_several_devices_is_refused() -> None:
    shared = replace(with_levers(cache=CACHE), ulysses=2)
    with pytest.raises(
        InvalidSettings, match="a step cache may skip a forward on one device alone"
    ):
        check_sharing(shared, read_card("tiny-world"))


def test_a_profile_brings_its_levers(tmp_path) -> None:
    profile = Profile.from_dict({"cache": CACHE, "linears": {"kind": "int8-weights"}})
    profile.save(tmp_path / "all.yaml")
    chosen = attention_settings(tmp_path / "all.yaml", {"method": "dense"}, {})
    assert chosen["levers"] == {
        "cache": CACHE,
        "linears": {"kind": "int8-weights", "skip": ("norm",)},
    }
    settings = RenderSettings("a red circle", **chosen)
    assert settings.as_dense().levers is None
    profile = Profile()
    profile.save(tmp_path / "none.yaml")
    assert attention_settings(tmp_path / "none.yaml", {}, {})["levers"] is None


@pytest.mark.parametrize("threshold", [0.0, 10.0])
def test_a_render_reports_its_levers_and_undoes_them(wan, threshold: float) -> None:
    plain = render(wan, SETTINGS)
    levers = {"cache": {"kind": "first-block", "threshold": threshold}}
    clip = render(wan, replace(SETTINGS, levers=levers))
    assert session_of(wan) is None
    assert not wan.transformer.is_cache_enabled
    record = build_record(SETTINGS, read_card("tiny-world"), clip, 0.0)
    forwards = 8  # four steps of two branches
    assert record["lever_effects"]["cache"]["forwards"] == forwards
    assert bool(record["lever_effects"]["cache"]["skipped"]) == bool(threshold)
    idle = f"the first-block cache skipped 0 of {forwards} forwards, so it had no effect"
    assert bool(record["idle_levers"]) == (not threshold)
    assert (idle in str(clip.attention)) == (not threshold)
    assert np.array_equal(clip.frames, plain.frames) == (not threshold)
    seconds = record["forward_seconds"]["transformer"]
    assert seconds["computed"] > 0
    assert bool(seconds["skipped"]) == bool(threshold)
    assert np.array_equal(render(wan, SETTINGS).frames, plain.frames)


def test_a_report_without_levers_has_no_lines_of_them(wan, run_wan) -> None:
    wan.enable_sparse_attention("dense")
    run_wan(wan)
    report = wan.attention_report()
    assert "forwards of" not in str(report)
    assert report.levers == {}
    assert report.forwards == {"transformer": {"computed": 8, "skipped": 0}}


def test_levers_are_shown(wan, run_wan) -> None:
    torch._dynamo.reset()
    profile = {
        "method": "dense",
        "cache": {"kind": "pab", "spatial_attention_timestep_skip_range": [0, 1000]},
        "linears": {"kind": "int8-weights"},
        "compile": {"backend": "eager"},
    }
    handle = wan.enable_acceleration(profile)
    run_wan(wan)
    shown = str(handle.report())
    assert "the pab cache skipped 0 of 8 forwards, and reused" in shown
    assert "linears int8-weights in 30 layers" in shown
    assert "compiled 3 blocks" in shown
    assert "forwards of transformer: 8 computed in" in shown
    assert "the pab cache skipped" in handle.report()._repr_html_()
    assert "cache" in repr(session_of(wan))


def test_each_lever_is_explained_by_a_render_without_it(wan) -> None:
    levers = {"cache": {**CACHE, "threshold": 10.0}, "linears": {"kind": "int8-weights"}}
    settings = replace(SETTINGS, levers=levers)
    clip, dense = render(wan, settings), render(wan, SETTINGS)
    explained = explain(settings, clip, dense, lambda without, _: render(wan, without))
    assert list(explained) == ["cache", "linears"]
    alone = render(wan, replace(SETTINGS, levers={"linears": levers["linears"]}))
    cache = explained["cache"]
    assert cache["psnr_without"] == pytest.approx(psnr(alone.frames, dense.frames))
    assert cache["lost_psnr"] == cache["psnr_without"] - psnr(clip.frames, dense.frames)
    assert cache["saved_seconds"] == cache["denoise_seconds_without"] - clip.seconds["denoise"]
    table = format_levers(clip.attention, explained).splitlines()
    assert re.search("what it did +saves s +costs dB", table[0])
    assert "skipped 6 of 8 forwards" in table[1]
    assert f"{cache['lost_psnr']:.3f}" in table[1]
    assert re.search("^linears +int8-weights in 30 layers", table[2])
    assert format_levers(dense.attention, {}) == ""


def test_explain_needs_a_comparison() -> None:
    done = CliRunner().invoke(cli, ["render", "a red circle", "--explain", "-o", "x.mp4"])
    assert isinstance(done.exception, InvalidSettings)
    assert "also give --compare" in str(done.exception)


def test_levers_are_checked_before_a_batch_is_planned(tmp_path) -> None:
    with pytest.raises(InvalidSettings, match="needs mag_ratios of transformer"):
        plan_jobs([with_levers(cache={"kind": "magcache"})], tmp_path / "clip.mp4", BatchOptions())


def test_a_label_tells_levers_from_plain_dense() -> None:
    levers = {"cache": {"kind": "first-block", "threshold": 0.1}, "compile": {}}
    cached = RenderSettings("p", method="dense", levers=levers)
    assert cached.label == "dense + first-block cache + compiled blocks"
    assert cached.as_dense().label == "dense"
    assert RenderSettings("p", method="dense", dense_precision="int8").label != "dense"
    assert RenderSettings("p", method="svg2").label == "svg2"
