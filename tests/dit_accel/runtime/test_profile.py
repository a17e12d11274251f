"""Rules of the schedule, and the file that holds everything."""

import pytest

from dit_accel import (
    METHODS,
    SVG2,
    Band,
    Guard,
    Neighborhood,
    Profile,
    RasterWindow,
    ReTtention,
    Rule,
    Schedule,
    SVGEar,
)
from dit_accel.core.attention_call import CallContext
from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import RenderSettings, build_profile
from dit_accel.methods import Dense


def places(rule: Rule, steps: int = 10, layers: int = 6, **more: str):
    """(step, layer) pairs at which a rule holds."""
    rest = {"component": "transformer", "branch": "cond", **more}
    return {
        (step, layer)
        for step in range(steps)
        for layer in range(layers)
        if rule.matches(
            CallContext(step=step, num_steps=steps, layer=layer, num_layers=layers, **rest)
        )
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20%-90%", range(2, 9)),
        ("0%-100%", range(10)),
        ("50%-", range(5, 10)),
        ("3", [3]),
        ("3-5", [3, 4, 5]),
        ("7-", [7, 8, 9]),
        ("0, 8-9", [0, 8, 9]),
        ("0-1,80%-100%", [0, 1, 8, 9]),
    ],
)
def test_steps(text: str, expected) -> None:
    assert {step for step, _ in places(Rule(steps=text))} == set(expected)


@pytest.mark.parametrize(
    ("text", "expected"), [("0,4-5", [0, 4, 5]), ("-1", [5]), ("-2--1", [4, 5]), ("3-", [3, 4, 5])]
)
def test_layers(text: str, expected) -> None:
    assert {layer for _, layer in places(Rule(layers=text))} == set(expected)


def test_a_rule_holds_where_all_of_it_fits() -> None:
    rule = Rule(steps="0-1", layers="2", expert="transformer_2", branch="uncond")
    assert places(rule) == set()
    assert places(rule, component="transformer_2", branch="uncond") == {(0, 2), (1, 2)}


def test_a_share_of_an_unknown_number_of_steps_never_fits() -> None:
    context = CallContext(step=3, num_layers=6)
    assert not Rule(steps="0%-100%").matches(context)
    assert Rule(steps="3").matches(context)


@pytest.mark.parametrize(
    "knobs",
    [
        {"steps": "a"},
        {"steps": "9-5"},
        {"steps": "20%"},
        {"steps": "2%-3"},
        {"steps": "-20%-"},
        {"steps": "20%-120%"},
        {"steps": "50%-20%"},
        {"layers": "5%-9%"},
        {"layers": ""},
    ],
    ids=str,
)
def test_wrong_spans_are_refused(knobs) -> None:
    with pytest.raises(ValueError, match="must be written like"):
        Rule(**knobs)


def test_rules_change_knobs_where_they_fit(wan, run_wan) -> None:
    rules = (
        Rule(layers="0", knobs={"density": 1.0}),
        Rule(layers="1", dense=True),
        Rule(steps="2-", layers="2", knobs={"density": 1.0}),
    )
    schedule = Schedule(dense_steps=0, min_tokens=0, rules=rules)
    wan.enable_sparse_attention(SVGEar(density=0.2), schedule=schedule)
    run_wan(wan)
    report = wan.attention_report()
    assert report.calls == {"dense": 8, "sparse": 16, "fallback": 0}
    assert report.layers["transformer.blocks.0.attn1"] == 1.0
    assert report.layers["transformer.blocks.2.attn1"] == pytest.approx(0.6, abs=0.04)


def test_a_rule_changes_the_mask_of_re_ttention(wan, run_wan) -> None:
    rules = (Rule(steps="2-", knobs={"mask": SVGEar(density=0.3)}),)
    schedule = Schedule(dense_steps=0, min_tokens=0, rules=rules)
    wan.enable_sparse_attention(ReTtention(density=0.3, refresh=2), schedule=schedule)
    assert run_wan(wan).isfinite().all()
    assert wan.attention_report().calls["sparse"] == 24


def test_rules_that_never_hold_are_told(wan, run_wan) -> None:
    rules = (
        *(Rule(layers="47", dense=True), Rule(layers="0", dense=True), Rule(expert="transfomer")),
        *(Rule(layers="0", knobs={"density": 0.5}), Rule(layers="1", knobs={"density": 0.5})),
    )
    schedule = Schedule(dense_steps=0, min_tokens=0, dense_layers=(-1, 60), rules=rules)
    wan.enable_sparse_attention(SVGEar(density=0.3), schedule=schedule)
    run_wan(wan)
    told = wan.attention_report().remarks
    assert told == [
        "rule 0 of the schedule never matched a call",
        "rule 2 of the schedule never matched a call that is not dense",
        "rule 3 of the schedule never matched a call that is not dense",
        "no call that could be sparse had a layer 60 of dense_layers",
    ]


def test_a_rule_by_expert(build_wan, run_wan) -> None:
    pipe = build_wan(two_transformers=True)
    schedule = Schedule(
        dense_steps=0, min_tokens=0, rules=(Rule(expert="transformer_2", dense=True),)
    )
    pipe.enable_sparse_attention(SVGEar(density=0.3), schedule=schedule)
    run_wan(pipe)
    report = pipe.attention_report()
    assert report.calls["dense"] > 0
    assert report.calls["sparse"] > 0
    assert all(name.startswith("transformer.") for name in report.layers)


def test_densities_by_head(wan, run_wan) -> None:
    schedule = Schedule(dense_steps=0, min_tokens=0)
    wan.enable_sparse_attention(SVGEar(density=(0.1, 0.9)), schedule=schedule)
    run_wan(wan)
    assert wan.attention_report().density["sparse_calls"] == pytest.approx(0.5, abs=0.06)
    wan.enable_sparse_attention(SVGEar(density=(0.1, 0.9, 0.5)), schedule=schedule)
    with pytest.raises(ValueError, match="density has 3 shares for 2 heads"):
        run_wan(wan)


def test_what_yaml_reads_as_something_else(tmp_path) -> None:
    text = "guard: {mode: on}\nschedule: {rules: [{steps: 3, layers: -1, dense: true}]}\n"
    (tmp_path / "p.yaml").write_text(text + "provenance: {date: 2026-01-01}\n")
    profile = Profile.load(tmp_path / "p.yaml")
    assert profile.guard.mode == "on"
    assert profile.schedule.rules == (Rule(steps="3", layers="-1", dense=True),)
    profile.save(tmp_path / "q.yaml")
    assert Profile.load(tmp_path / "q.yaml").provenance == {"date": "2026-01-01"}


FULL_PROFILE = Profile(
    ReTtention(mask=SVGEar(density=0.2), mode="paper"),
    Schedule(
        0.1,
        (0, -1),
        512,
        (
            Rule(
                "20%-90%",
                "0,4-5",
                "transformer",
                "cond",
                False,
                {"lam": 0.0, "mask": SVGEar(density=0.4)},
            ),
        ),
    ),
    "int8",
    "auto",
    Guard("warn", 0.3, 8),
    {"model": "tiny-world", "measured": {"psnr": 31.5}},
)


@pytest.mark.parametrize("name", ["profile.yaml", "profile.json"])
def test_everything_round_trips(tmp_path, name: str) -> None:
    FULL_PROFILE.save(tmp_path / name)
    assert Profile.load(tmp_path / name) == FULL_PROFILE


def test_one_file_serves_library_and_command_line(tmp_path, wan) -> None:
    from dit_accel.generation.settings import attention_settings

    FULL_PROFILE.save(tmp_path / "p.yaml")
    assert wan.enable_sparse_attention(profile=tmp_path / "p.yaml").profile == FULL_PROFILE
    settings = attention_settings(tmp_path / "p.yaml", {"method": None}, {})
    built = build_profile(RenderSettings("a", **settings))
    for name in ("method", "schedule", "precision", "dense_precision", "guard"):
        assert getattr(built, name) == getattr(FULL_PROFILE, name)


def test_what_is_given_besides_wins(tmp_path, wan) -> None:
    from dit_accel.generation.settings import attention_settings

    FULL_PROFILE.save(tmp_path / "p.yaml")
    same = wan.enable_sparse_attention("re-ttention", profile=tmp_path / "p.yaml")
    assert same.profile == FULL_PROFILE
    other = wan.enable_sparse_attention("svg2", profile=tmp_path / "p.yaml", guard="off")
    assert other.profile.method == SVG2()
    assert other.profile.guard == Guard()
    assert other.profile.schedule == FULL_PROFILE.schedule.without_knobs()
    unguarded = attention_settings(tmp_path / "p.yaml", {"guard": "off"}, {})
    assert build_profile(RenderSettings("a", **unguarded)).guard == Guard()
    ruled = next(name for rule in FULL_PROFILE.schedule.rules for name in rule.knobs)
    with pytest.raises(InvalidSettings, match=f"rules of the profile set {ruled}"):
        attention_settings(tmp_path / "p.yaml", {}, {ruled: "0.3"})
    given = {"method": "svg-ear", "guard": "on"}
    settings = attention_settings(tmp_path / "p.yaml", given, {"density": "0.3"})
    built = build_profile(RenderSettings("a", **settings))
    assert (built.method, built.guard.mode) == (SVGEar(density=0.3), "on")
    assert built.schedule.dense_steps == 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metod": "svg2"}, "unknown profile key 'metod': choose from method, knobs"),
        ({"method": "svg3"}, "unknown method 'svg3'"),
        ({"knobs": {"top_q": 1}}, "unknown svg-ear knob 'top_q'"),
        ({"method": "svg2", "knobs": {"top_p": "high"}}, "svg2 knob top_p: .*got 'high'"),
        ({"schedule": {"dense": 1}}, "unknown schedule 'dense'"),
        (
            {"schedule": {"rules": [{"steps": "x"}]}},
            r"schedule rules\[0\]: steps must be written like",
        ),
        ({"schedule": {"rules": [{"layer": "1"}]}}, r"schedule rules\[0\].layer: .*"),
        ({"schedule": {"rules": [{"knobs": {"top_q": 1}}]}}, "unknown svg-ear knob 'top_q'"),
        (
            {"method": "svg2", "schedule": {"rules": [{"knobs": {"top_p": 7}}]}},
            r"top_p must be in \(0, 1\], got 7",
        ),
        ({"precision": "int3"}, "unknown precision 'int3'"),
        ({"guard": {"mode": "maybe"}}, "guard mode: .*got 'maybe'"),
        (
            {"guard": {"limit": 0.3}},
            "guard limit has no effect with guard off: set guard to warn or on",
        ),
        (
            {"schedule": {"rules": [{"dense": True, "knobs": {"density": 0.5}}]}},
            r"schedule rules\[0\]: density has no effect in a dense rule",
        ),
        (
            {
                "cache": {
                    "kind": "magcache",
                    "num_inference_steps": 3,
                    "mag_ratios": {"transformer": [1.0, 0.9]},
                }
            },
            "2 mag_ratios for 3 steps: call calibrate_mag_cache",
        ),
        (
            {
                "cache": {
                    "kind": "magcache",
                    "num_inference_steps": 1,
                    "mag_ratios": {"a": [1, 0.9]},
                }
            },
            "2 mag_ratios for 1 steps: call calibrate_mag_cache",
        ),
        ({"method": ["svg2"]}, "unknown method"),
        (
            {"method": "re-ttention", "knobs": {"mask": {"density": 0.2}}},
            "re-ttention knob mask: write a method as {method: NAME, KNOB: VALUE}",
        ),
        (
            {
                "method": "xattention",
                "schedule": {"rules": [{"knobs": {"stride": 16}}, {"knobs": {"block": 24}}]},
            },
            "block must be a multiple of stride",
        ),
        ({"guard": "on"}, "profile guard must hold keys and values, got 'on'"),
        (
            {"method": "dense", "precision": "int8"},
            "precision int8 is for sparse calls, and method dense has none: set dense_precision",
        ),
        (
            {"method": "dense", "guard": {"mode": "warn"}},
            "guard 'warn' is for sparse calls, and method dense has none: leave it out",
        ),
    ],
    ids=str,
)
def test_a_wrong_profile_names_the_key(values, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message) as caught:
        Profile.from_dict(values)
    assert "\n" not in str(caught.value)


def test_what_sparse_calls_use_goes_with_their_method() -> None:
    profile = Profile(precision="int8", dense_precision="int8", guard=Guard("on", limit=0.1))
    assert profile.with_method(Dense()) == Profile(
        Dense(), profile.schedule, dense_precision="int8"
    )
    assert profile.with_method(SVGEar(density=0.1)).guard == profile.guard


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.yaml", "- a\n", "must hold keys and values"),
        ("p.yaml", "a: [", "cannot read profile"),
        ("p.json", "{", "cannot read profile"),
        ("p.txt", "", "must end in .yaml, .yml, .json"),
        ("missing.yaml", None, "cannot read profile"),
        ("p.yaml", "method: svg2\nknobs: {top_p: 9}\n", r"p.yaml: svg2 knob top_p must be in"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidSettings, match=message) as caught:
        Profile.load(tmp_path / name)
    assert "\n" not in str(caught.value)


NESTED = [
    ({"mask": "band", "mask.block": "32"}, Band(density=0.15, block=32)),
    ({"mask.block": "32", "mask": "band", "density": "0.3"}, Band(density=0.3, block=32)),
    ({"mask": "band", "mask.density": "0.2"}, Band(density=0.2)),
    ({"mask": "raster-window", "mask.window": "0.0625"}, RasterWindow(window=0.0625)),
    ({"mask.window": "3,1+3"}, Neighborhood(density=0.15, window=(3, 1, 3))),
    ({"mask.window": "none", "mask.tile": "1,2,2"}, Neighborhood(density=0.15, tile=(1, 2, 2))),
    (
        {"mask": {"method": "svg-ear", "density": 0.4}, "mask.refresh": "2"},
        SVGEar(density=0.4, refresh=2),
    ),
]


@pytest.mark.parametrize(("knobs", "mask"), NESTED, ids=str)
def test_knobs_of_a_nested_method_are_set_by_name(tmp_path, knobs: dict, mask) -> None:
    profile = build_profile(RenderSettings("", method="re-ttention", knobs=knobs))
    assert profile.method.inner == mask
    profile.save(tmp_path / "p.yaml")
    assert Profile.load(tmp_path / "p.yaml") == profile
    again = build_profile(RenderSettings("", **profile.as_settings()))
    assert again.method.inner == mask


def test_a_rule_sets_a_knob_of_a_nested_method() -> None:
    rule = Rule(steps="2-", knobs={"mask.block": 32})
    profile = Profile(ReTtention(mask="band"), Schedule(rules=(rule,)))
    assert profile.at((0,)).inner == Band(density=0.15, block=32)
    with pytest.raises(InvalidSettings, match="re-ttention mask: unknown band knob 'blok'"):
        Profile(ReTtention(mask="band"), Schedule(rules=(Rule(knobs={"mask.blok": 1}),)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("knob", ["density.x", "foo.x", ".x", "mask.", "mask.foo", "mask.mask.x"])
def test_a_knob_that_no_nested_method_has_is_refused(method: str, knob: str) -> None:
    """The error names what can be set."""
    with pytest.raises(InvalidSettings) as error:
        build_profile(RenderSettings("", method=method, knobs={knob: "1"}))
    message = str(error.value)
    if method == "re-ttention" and knob.startswith("mask."):
        assert message.startswith("re-ttention mask: unknown neighborhood knob ")
        assert "choose from density, window, tile" in message
    else:
        assert message.startswith(f"unknown {method} knob {knob!r}: choose from ")
        assert message.endswith("schedule.KNOB, guard.KNOB")
        assert ("mask.KNOB" in message) == (method == "re-ttention")


def test_a_knob_that_was_removed_loads_with_its_default_alone() -> None:
    old = {"method": "svg-ear", "knobs": {"skipped": "centroid", "second_order": False}}
    assert Profile.from_dict(old).method == SVGEar(skipped="centroid")
    old["knobs"]["second_order"] = True
    with pytest.raises(InvalidSettings, match="svg-ear knob second_order was removed: leave it"):
        Profile.from_dict(old)
