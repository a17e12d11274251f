"""The verbs: they compose in any order, take plain values, and refuse wrong ones at once."""

import dataclasses
import inspect
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.verbs_script import render_with_every_verb

import dit_accel
from dit_accel import (
    SVG2,
    Guard,
    InvalidSettings,
    PerturbedGuidance,
    Profile,
    Rule,
    Schedule,
    SVGEar,
)
from dit_accel.runtime.active_sessions import session_of
from dit_accel.verbs import VERBS

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
COARSE = SVG2(query_clusters=4, key_clusters=12, top_p=0.5, min_key_share=0.0)


def precisions(pipe) -> tuple[str, str]:
    """Precision of the sparse and of the dense calls of a pipeline."""
    profile = session_of(pipe).profile
    return profile.precision, profile.dense_precision


def test_quantized_attention_composes_with_sparse_attention_in_both_orders(wan, run_wan) -> None:
    wan.enable_sparse_attention(COARSE, schedule=ALWAYS)
    wan.enable_quantized_attention("int8")
    first = run_wan(wan)
    assert wan.attention_report().calls["sparse"] == 24
    assert precisions(wan) == ("int8", "int8")
    wan.disable_sparse_attention()
    wan.enable_sparse_attention(COARSE, schedule=ALWAYS)
    assert precisions(wan) == ("int8", "int8")
    assert torch.equal(run_wan(wan), first)


def test_each_verb_takes_back_only_its_own(wan, run_wan) -> None:
    untouched = run_wan(wan)
    wan.enable_sparse_attention(COARSE, schedule=ALWAYS)
    sparse = run_wan(wan)
    wan.enable_quantized_attention("int8")
    wan.enable_perturbed_guidance(2.0)
    wan.disable_quantized_attention()
    wan.disable_perturbed_guidance()
    assert torch.equal(run_wan(wan), sparse)
    wan.enable_quantized_attention("int8")
    wan.disable_sparse_attention()
    assert precisions(wan)[1] == "int8"
    assert not torch.equal(run_wan(wan), untouched)
    wan.disable_quantized_attention()
    assert session_of(wan) is None
    assert torch.equal(run_wan(wan), untouched)


def test_the_later_precision_wins(wan) -> None:
    wan.enable_quantized_attention("int8")
    wan.enable_sparse_attention(COARSE, precision="full")
    assert precisions(wan) == ("full", "int8")
    wan.enable_quantized_attention("int8-fp8")
    assert precisions(wan) == ("int8-fp8", "int8-fp8")
    wan.disable_quantized_attention()
    assert precisions(wan) == ("full", "full")


def test_a_handle_ends_only_its_own_quantization(wan) -> None:
    wan.enable_sparse_attention(COARSE)
    with wan.enable_quantized_attention("int8") as handle:
        assert handle.report().method == "svg2"
    assert precisions(wan) == ("full", "full")
    wan.enable_quantized_attention("int8-fp8")
    handle.close()
    assert precisions(wan) == ("int8-fp8", "int8-fp8")


def test_classes_and_plain_values_are_accepted(wan) -> None:
    session = wan.enable_sparse_attention(
        SVGEar,
        schedule={"dense_steps": 0.5, "rules": [{"layers": "0", "dense": True}]},
        guard="warn",
    )
    assert session.profile.method == SVGEar()
    assert session.profile.schedule.dense_steps == 0.5
    assert session.profile.schedule.rules[0].dense
    assert session.profile.guard == Guard("warn")
    profile = {"method": "svg2", "knobs": {"top_p": 0.7}, "guard": {"mode": "warn", "limit": 0.1}}
    session = wan.enable_sparse_attention(profile=profile)
    assert session.profile == Profile(SVG2(top_p=0.7), guard=Guard("warn", limit=0.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": 3}, "method must be a name or a Method, got int"),
        ({"method": Schedule}, "method must be a name or a Method, got the class Schedule"),
        ({"method": "nosuch"}, "unknown method 'nosuch': choose one of dense, svg2"),
        ({"schedule": 0.2}, "schedule must be a Schedule or a dictionary, got float"),
        ({"schedule": {"dense": 1}}, "unknown schedule 'dense': choose from dense_steps"),
        ({"guard": 1}, "guard must be a Guard or a dictionary, got int"),
        ({"guard": "maybe"}, "guard"),
        ({"profile": 1}, "profile must be a Profile, a file, a recipe or a dictionary, got int"),
        ({"precision": "int4"}, "unknown precision 'int4': choose one of full"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_and_change_nothing(wan, arguments, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        wan.enable_sparse_attention(**arguments)
    assert session_of(wan) is None
    assert "forward" not in vars(wan.transformer)


WRONG = [
    *(
        3,
        -1,
        math.nan,
        math.inf,
        "x",
        "",
        b"x",
        [],
        ["a"],
        [1],
        {"a": 1},
        (),
        object(),
        object,
        True,
        set(),
        1j,
    ),
    *(Path("/nowhere"), SVG2(), Schedule, Guard, Profile, print, 10**30),
]
ACCEPTED: dict[str, tuple[Any, ...]] = {
    "method": (SVG2(),),
    "scale": (3,),
    "adaptive": (3,),
    "share_prefix": (True,),
}


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        *(
            ("enable_sparse_attention", name)
            for name in ("method", "schedule", "precision", "dense_precision", "guard", "profile")
        ),
        ("enable_quantized_attention", "precision"),
        *(
            ("enable_perturbed_guidance", name)
            for name in ("scale", "heads", "layers", "softness", "interval", "perturbation")
        ),
        *(
            ("enable_perturbed_guidance", name)
            for name in ("text_mode", "rescale", "adaptive", "share_prefix")
        ),
    ],
)
def test_every_argument_of_every_verb_is_checked(wan, verb: str, name: str) -> None:
    for value in WRONG:
        if any(value is accepted or value == accepted for accepted in ACCEPTED.get(name, ())):
            continue
        with pytest.raises(InvalidSettings) as caught:
            getattr(wan, verb)(**{name: value})
        assert "\n" not in str(caught.value), value
        assert session_of(wan) is None
    assert "forward" not in vars(wan.transformer)


@pytest.mark.parametrize(
    "target", [None, 3, "wan", object(), {}], ids=lambda target: type(target).__name__
)
def test_every_target_is_checked(target) -> None:
    for verb in dit_accel.__all__:
        if verb.startswith(("enable", "disable")):
            profile = [{}] if verb == "enable_acceleration" else []
            with pytest.raises(InvalidSettings):
                getattr(dit_accel, verb)(target, *profile)


@pytest.mark.parametrize("kind", [Schedule, Guard, Rule, Profile, PerturbedGuidance])
def test_settings_check_the_types_of_their_fields(kind: type[Any]) -> None:
    for field in dataclasses.fields(kind):
        with pytest.raises(InvalidSettings):
            kind(**{field.name: object()})


def test_sessions_and_reports_are_readable(wan, run_wan) -> None:
    session = wan.enable_sparse_attention(COARSE, schedule=ALWAYS)
    wan.enable_quantized_attention("int8")
    wan.enable_perturbed_guidance(2.0)
    run_wan(wan)
    text = repr(session)
    assert text.startswith("<Session on wan: sparse attention SVG2(")
    assert "quantized attention int8, perturbed guidance of blocks.1:*" in text
    report = wan.attention_report()
    assert str(report) in repr(report)
    html = report._repr_html_()
    assert html.startswith("<table>")
    assert "<td style='text-align:left'>svg2</td>" in html


@pytest.mark.parametrize(
    "imports",
    [
        "import dit_accel; from diffusers import WanPipeline",
        "from diffusers import WanPipeline; import dit_accel",
        "import dit_accel.api; from diffusers import WanPipeline",
        "from dit_accel import SVG2, enable_sparse_attention; from diffusers import WanPipeline",
        "import dit_accel.hooks; from diffusers import WanPipeline",
    ],
)
def test_pipelines_get_the_verbs_in_every_order_of_imports(imports: str) -> None:
    code = f"{imports}; assert callable(WanPipeline.enable_sparse_attention)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)


def test_verbs_are_functions_with_examples(wan) -> None:
    for name in VERBS:
        function = getattr(dit_accel, name)
        assert "Example:" in inspect.getdoc(function), name
        assert getattr(type(wan), name) is function
        assert getattr(wan, name).__self__ is wan


def test_public_names_load() -> None:
    for name in dit_accel.__all__:
        assert getattr(dit_accel, name) is not None
    assert set(VERBS) <= set(dir(dit_accel))


def test_errors_share_a_base() -> None:
    for error in (
        dit_accel.InvalidSettings,
        dit_accel.RunFailed,
        dit_accel.UnknownFamily,
        dit_accel.UnsupportedProcessor,
    ):
        assert issubclass(error, dit_accel.DitAccelError)
    assert issubclass(dit_accel.InvalidSettings, ValueError)


def test_a_rendering_session_comes_back(wan, run_wan) -> None:
    from dit_accel.runtime.active_sessions import preserved_session

    session = wan.enable_sparse_attention(COARSE, schedule=ALWAYS)
    expected = run_wan(wan)
    with preserved_session(wan):
        wan.enable_sparse_attention("dense")
        run_wan(wan)
    assert session_of(wan) is session
    assert torch.equal(run_wan(wan), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SVGEar(density=2),
        lambda: SVG2(kmeans_iterations=(0, 1)),
        lambda: Schedule(dense_steps=2),
        lambda: Guard("maybe"),
        lambda: dit_accel.Rule(steps="x"),
        lambda: dit_accel.PerturbedGuidance(scale=-1),
        lambda: dit_accel.Neighborhood(tile=(0, 1, 1)),
    ],
)
def test_settings_out_of_range_are_errors_of_ours(make) -> None:
    with pytest.raises(InvalidSettings):
        make()


def test_a_script_with_every_verb_runs_and_restores(wan, run_wan) -> None:
    expected = run_wan(wan)
    assert render_with_every_verb(wan).method == "svg-ear"
    assert session_of(wan) is None
    assert torch.equal(run_wan(wan), expected)


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (Schedule(dense_steps=0), "0 of 24 calls were sparse: fewer than 768 tokens"),
        (Schedule(dense_steps=1), "0 of 24 calls were sparse: the schedule leaves them dense"),
    ],
)
def test_a_run_without_sparse_calls_says_so_first(wan, run_wan, schedule, reason: str) -> None:
    wan.enable_sparse_attention(COARSE, schedule=schedule)
    assert wan.attention_report().no_effect is None  # nothing ran yet
    run_wan(wan)
    report = wan.attention_report()
    assert report.no_effect == reason
    assert str(report).startswith(reason)
    assert str(report).count("fewer than 768 tokens") == reason.count("fewer than 768 tokens")
    assert reason in report._repr_html_()


def test_sparse_and_quantized_runs_have_an_effect(wan, run_wan) -> None:
    wan.enable_sparse_attention(COARSE, schedule=ALWAYS)
    run_wan(wan)
    assert wan.attention_report().no_effect is None
    wan.disable_sparse_attention()
    wan.enable_quantized_attention("int8")
    run_wan(wan)
    assert wan.attention_report().no_effect is None


def test_a_report_outlives_what_made_it(wan, run_wan) -> None:
    with wan.enable_sparse_attention(COARSE, schedule=ALWAYS) as session:
        with wan.enable_quantized_attention("int8"):
            run_wan(wan)
        report = wan.attention_report()
        assert report.precision == {"sparse": "int8", "dense": "int8"}
        assert report.calls["sparse"] == 24
    assert session.report().calls == report.calls
    assert session.report().method == "svg2"
    session = wan.enable_sparse_attention(COARSE, schedule=ALWAYS)
    run_wan(wan)
    assert session.report().precision["sparse"] == "full"
