"""The verb for all levers: what it applies, that it is undone exactly, and how levers go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.composition import group_offload, lora, relative_error, render
from support.levers import CASES, IDLE, LINEARS, NOTHING, SKIPPING, SPARSE, snapshot, tiny
from support.tiny_pipelines import TINY

import dit_accel
from dit_accel import Band, InvalidSettings, Profile, RunFailed
from dit_accel.core.caches import CACHES


def same_bits(pipe: Any, profile: dict[str, Any], run: Callable[[], torch.Tensor]) -> None:
    """Check that a profile does something or nothing, and that it is undone exactly."""
    before, plain = snapshot(pipe), run()
    pipe.enable_acceleration(profile)
    accelerated = run()
    assert torch.equal(run(), accelerated), "the second run differs"
    pipe.disable_acceleration()
    assert snapshot(pipe) == before
    assert torch.equal(run(), plain)


@pytest.mark.parametrize("family", ["wan", "flux", "hunyuan-video", "cogvideox"])
def test_every_lever_off_is_the_untouched_pipeline(family: str) -> None:
    pipe, run = tiny(family)
    plain = run()
    with pipe.enable_acceleration(NOTHING):
        assert torch.equal(run(), plain)
    assert torch.equal(run(), plain)


@pytest.mark.parametrize("kind", SKIPPING)
@pytest.mark.parametrize("two", [False, True], ids=["one expert", "two experts"])
def test_a_cache_is_undone_exactly(build_wan, kind: str, two: bool) -> None:
    if kind == "fastercache" and two:
        pytest.skip("the second expert has no step before its range")
    pipe = build_wan(two_transformers=two)
    same_bits(pipe, {**NOTHING, "cache": SKIPPING[kind]}, lambda: render(pipe, CASES["separate"]))


@pytest.mark.parametrize("family", ["flux", "hunyuan-video", "cogvideox", "ltx"])
@pytest.mark.parametrize("kind", ["first-block", "taylorseer", "seacache", "pab"])
def test_a_cache_on_other_families(family: str, kind: str) -> None:
    pipe, run = tiny(family)
    if (family, kind) == ("cogvideox", "seacache"):
        with pytest.raises(InvalidSettings, match="CogVideoXDPMScheduler has none"):
            pipe.enable_acceleration({**NOTHING, "cache": SKIPPING[kind]})
        return
    same_bits(pipe, {**NOTHING, "cache": SKIPPING[kind]}, run)


def test_a_cache_of_both_halves_of_a_batch() -> None:
    pipe, run = tiny("cogvideox")
    cache = {
        **{"kind": "fastercache", "tensor_format": "BFCHW"},
        "unconditional_batch_timestep_skip_range": [-1, 990],
        "spatial_attention_timestep_skip_range": [-1, 990],
    }
    plain = run()
    with pipe.enable_acceleration({**NOTHING, "cache": cache}) as handle:
        assert not torch.equal(run(), plain)
        assert handle.report().levers["cache"]["reused"]
        with pytest.raises(RunFailed, match="this run has no guidance"):
            TINY["cogvideox"].run(pipe, cfg=False)
        pipe.enable_perturbed_guidance(2.0)
        with pytest.raises(RunFailed, match="perturbed guidance runs half of a batch"):
            run()
        pipe.disable_perturbed_guidance()
    same_bits(pipe, {**NOTHING, "cache": cache}, run)


@pytest.mark.parametrize("kind", LINEARS)
def test_linears_are_restored_bit_for_bit(build_wan, kind: str) -> None:
    pipe = build_wan(two_transformers=True)
    plain = render(pipe, CASES["none"])
    with pipe.enable_acceleration({**NOTHING, "linears": {"kind": kind}}):
        assert 0 < relative_error(render(pipe, CASES["none"]), plain) < 0.05
    same_bits(pipe, {**SPARSE, "linears": {"kind": kind}}, lambda: render(pipe, CASES["none"]))


def test_compiled_blocks_are_undone(build_wan) -> None:
    torch._dynamo.reset()
    pipe = build_wan()
    levers = {"compile": {"backend": "aot_eager"}, "cache": SKIPPING["first-block"]}
    same_bits(pipe, {**NOTHING, **levers}, lambda: render(pipe, CASES["separate"]))


def test_compiled_blocks_share_one_graph_below_a_cache(build_wan) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    pipe = build_wan()
    pipe.enable_acceleration({**SPARSE, "cache": IDLE["first-block"]})
    expected = render(pipe, CASES["none"])
    compiled = {"compile": {"backend": "aot_eager", "fullgraph": True}}
    pipe.enable_acceleration({**SPARSE, **compiled, "cache": IDLE["first-block"]})
    assert relative_error(render(pipe, CASES["none"]), expected) < 1e-3
    assert counters["stats"]["unique_graphs"] == 1


ALL = {
    **SPARSE,
    "cache": SKIPPING["first-block"],
    "linears": {"kind": "int8-weights"},
    "compile": {"backend": "aot_eager"},
}
STEPS = {
    "acceleration": (
        lambda pipe: pipe.enable_acceleration(ALL),
        lambda pipe: pipe.disable_acceleration(),
    ),
    "guidance": (
        lambda pipe: pipe.enable_perturbed_guidance(2.0, heads="blocks.2"),
        lambda pipe: pipe.disable_perturbed_guidance(),
    ),
    "int8 attention": (
        lambda pipe: pipe.enable_quantized_attention("int8"),
        lambda pipe: pipe.disable_quantized_attention(),
    ),
    "sparse": (
        lambda pipe: pipe.enable_sparse_attention("band", schedule=SPARSE["schedule"]),
        lambda pipe: pipe.disable_sparse_attention(),
    ),
}
ORDERS = [
    (("guidance", "acceleration"), ("acceleration", "guidance")),
    (("guidance", "acceleration"), ("guidance", "acceleration")),
    (("acceleration", "guidance"), ("acceleration", "guidance")),
    (
        ("acceleration", "int8 attention", "guidance"),
        ("acceleration", "guidance", "int8 attention"),
    ),
    (("sparse", "acceleration"), ("acceleration", "sparse")),
    (("acceleration", "sparse"), ("acceleration", "sparse")),
    (("acceleration", "sparse"), ("sparse", "acceleration")),
    (("acceleration", "acceleration"), ("acceleration",)),
]


@pytest.mark.parametrize(
    ("enabled", "disabled"), ORDERS, ids=[" ".join((*on, "off:", *off)) for on, off in ORDERS]
)
def test_every_order_is_undone(build_wan, enabled, disabled) -> None:
    torch._dynamo.reset()
    pipe = build_wan()
    plain, before = render(pipe, CASES["separate"]), snapshot(pipe)
    for name in enabled:
        STEPS[name][0](pipe)
    assert not torch.equal(render(pipe, CASES["separate"]), plain)
    for name in disabled:
        STEPS[name][1](pipe)
    assert snapshot(pipe) == before
    assert torch.equal(render(pipe, CASES["separate"]), plain)


def test_sparse_attention_that_was_replaced_comes_back(wan) -> None:
    wan.enable_sparse_attention("band", schedule=SPARSE["schedule"])
    expected = render(wan, CASES["none"])
    wan.enable_acceleration({**SPARSE, "cache": SKIPPING["magcache"]})
    wan.enable_acceleration({**SPARSE, "cache": SKIPPING["first-block"]})
    wan.disable_acceleration()
    assert torch.equal(render(wan, CASES["none"]), expected)
    assert wan.attention_report().method == "band"


def test_sparse_attention_alone_ignores_the_levers(wan) -> None:
    profile = {**SPARSE, "cache": SKIPPING["first-block"]}
    with pytest.warns(UserWarning, match="also sets cache, which is left out"):
        wan.enable_sparse_attention(profile=profile)
    render(wan, CASES["none"])
    assert not wan.transformer.is_cache_enabled
    assert wan.attention_report().forwards == {"transformer": {"computed": 4, "skipped": 0}}


@pytest.mark.parametrize("feature", [lora, group_offload], ids=["LoRA", "group offload"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_features_before_and_after(build_wan, feature, late: bool) -> None:
    plain_pipe = build_wan()
    feature(plain_pipe)
    plain = render(plain_pipe, CASES["separate"])
    profile = {**SPARSE, "cache": SKIPPING["first-block"]}
    expected_pipe = build_wan()
    feature(expected_pipe)
    expected_pipe.enable_acceleration(profile)
    expected = render(expected_pipe, CASES["separate"])
    pipe = build_wan()
    if not late:
        feature(pipe)
    pipe.enable_acceleration(profile)
    if late:
        feature(pipe)
    assert torch.equal(render(pipe, CASES["separate"]), expected)
    pipe.disable_acceleration()
    assert torch.equal(render(pipe, CASES["separate"]), plain)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_lora_with_quantized_linears(build_wan, late: bool) -> None:
    plain_pipe = build_wan()
    torch.manual_seed(5)
    lora(plain_pipe)
    plain = render(plain_pipe, CASES["none"])
    pipe = build_wan()
    torch.manual_seed(5)
    if not late:
        lora(pipe)
    pipe.enable_acceleration({**NOTHING, "linears": {"kind": "int8-weights"}})
    if late:
        lora(pipe)
    assert 0 < relative_error(render(pipe, CASES["none"]), plain) < 0.05
    pipe.disable_acceleration()
    assert torch.equal(render(pipe, CASES["none"]), plain)


@pytest.mark.parametrize("guidance", CASES)
@pytest.mark.parametrize("kind", [*IDLE])
def test_guidance_with_an_idle_cache_is_guidance(build_wan, kind: str, guidance: str) -> None:
    pipe, case = build_wan(), CASES[guidance]
    pipe.enable_perturbed_guidance(2.0, heads="blocks.1:1; blocks.2", share_prefix=False)
    expected = render(pipe, case)
    with pipe.enable_acceleration({**NOTHING, "cache": IDLE[kind]}) as handle:
        assert torch.equal(render(pipe, case), expected)
        counts = handle.report().forwards["transformer"]
    assert counts["skipped"] == 0
    assert torch.equal(render(pipe, case), expected)


@pytest.mark.parametrize("guidance", CASES)
@pytest.mark.parametrize("kind", ["first-block", "taylorseer", "magcache", "seacache"])
def test_the_perturbed_forward_is_skipped_with_the_clean_one(build_wan, kind, guidance) -> None:
    pipe, case = build_wan(), CASES[guidance]
    pipe.enable_acceleration({**NOTHING, "cache": SKIPPING[kind]})
    render(pipe, case)
    alone = pipe.attention_report().forwards["transformer"]
    pipe.enable_perturbed_guidance(2.0, heads="blocks.1:1; blocks.2")
    render(pipe, case)
    both = pipe.attention_report().forwards["transformer"]
    conditional = (
        2 if guidance == "separate" else 1
    )  # one of two branches is guided, or the only one
    assert alone["skipped"]
    for count in ("computed", "skipped"):
        assert both[count] == alone[count] + alone[count] // conditional


@pytest.mark.parametrize("kind", ["taylorseer", "magcache", "seacache", "pab"])
def test_a_skipped_forward_leaves_the_method_as_it_was(build_wan, kind: str) -> None:
    """The states of a method after a run equal those of a method that saw the computed calls alone."""
    from dit_accel.runtime.active_sessions import session_of

    seen: list[tuple[int, int]] = []
    profile = Profile.from_dict({**SPARSE, "knobs": {"density": 0.4, "refresh": 2}})
    pipe = build_wan()
    pipe.enable_acceleration({**profile.to_dict(), "cache": SKIPPING[kind]})
    session = session_of(pipe)
    attend = session._attention.run_method
    calls: list[tuple[Any, Any]] = []

    def recorded(call, run, method, key):
        result = attend(call, run, method, key)
        seen.append((call.context.step, call.context.layer))
        calls.append((call, result.out))
        return result

    session._attention.run_method = recorded
    render(pipe, CASES["none"])
    assert 3 <= len(seen) < 12
    # A fresh method that is given the computed calls alone, in their order.
    from dit_accel.runtime.run_state import Run

    run, method = Run(profile), profile.method
    for call, out in calls:
        attended = method.attend(call, run.state_of(call.context.layer, method), run.ops)
        assert torch.equal(attended.out, out), f"step {call.context.step}"


def test_the_deciding_block_is_dense(wan) -> None:
    wan.enable_acceleration({**SPARSE, "cache": IDLE["first-block"]})
    render(wan, CASES["none"])
    report = wan.attention_report()
    assert report.calls == {"dense": 4, "sparse": 8, "fallback": 0}
    assert set(report.layers) == {"transformer.blocks.1.attn1", "transformer.blocks.2.attn1"}


def test_magcache_is_calibrated_under_the_attention_of_the_profile(build_wan) -> None:
    pipe = build_wan(two_transformers=True)
    plain, before = render(pipe, CASES["separate"]), snapshot(pipe)
    cache = {"kind": "magcache", "threshold": 10.0, "retention_ratio": 0.0}
    found = {}
    for name, attention in (("dense", NOTHING), ("sparse", SPARSE)):
        profile = dit_accel.calibrate_mag_cache(
            pipe, {**attention, "cache": cache}, lambda: render(pipe, CASES["separate"])
        )
        found[name] = profile.cache.mag_ratios
        assert profile.cache.num_inference_steps == 4
        assert {key: len(values) for key, values in profile.cache.mag_ratios.items()} == {
            "transformer": 1,
            "transformer_2": 3,
        }
    assert found["dense"] != found["sparse"]
    assert snapshot(pipe) == before
    assert torch.equal(render(pipe, CASES["separate"]), plain)
    pipe.enable_acceleration(profile)
    render(pipe, CASES["separate"])
    assert pipe.attention_report().forwards["transformer_2"]["skipped"] == 4
    unnamed = replace(profile, cache=replace(profile.cache, num_inference_steps=None))
    for ratios in (profile, unnamed):  # the number of ratios tells the number of steps
        pipe.enable_acceleration(ratios)
        with pytest.raises(RunFailed, match="measured in 4 steps, and this run has 5"):
            pipe("a red circle", height=64, width=64, num_frames=5, num_inference_steps=5)


def test_magcache_is_refused_at_other_timesteps(wan) -> None:
    profile = dit_accel.calibrate_mag_cache(
        wan, {**NOTHING, "cache": {"kind": "magcache"}}, lambda: render(wan, CASES["none"])
    )
    assert list(profile.cache.timesteps) == wan.scheduler.timesteps.tolist()
    assert Profile.from_dict(profile.to_dict()) == profile
    wan.enable_acceleration(profile)
    render(wan, CASES["none"])
    wan.scheduler = type(wan.scheduler).from_config(wan.scheduler.config, shift=9.0)
    with pytest.raises(
        RunFailed, match=r"measured at the timesteps \d+, \d+, \d+, \.\.\. \d+, and"
    ):
        render(wan, CASES["none"])
    old = replace(profile, cache=replace(profile.cache, timesteps=()))
    wan.enable_acceleration(old)  # a file of before does not say them
    render(wan, CASES["none"])
    wan.enable_acceleration(profile)
    wan.scheduler.set_timesteps(1000)  # the loop below steps another scheduler
    text, _ = wan.encode_prompt("a", False, max_sequence_length=16, device="cpu")
    for step in range(4):
        with (
            torch.no_grad(),
            wan.transformer.cache_context("cond", step_index=step, num_inference_steps=4),
        ):
            wan.transformer(torch.zeros(1, 8, 3, 8, 8), torch.tensor([900.0 - step]), text)
    assert wan.attention_report().forwards["transformer"]["computed"]


def test_calibration_leaves_what_was_enabled_before(wan) -> None:
    wan.enable_sparse_attention(Band(density=0.9))
    wan.enable_acceleration({**NOTHING, "cache": SKIPPING["first-block"]})
    wan.enable_sparse_attention(Band(density=0.5))
    before = render(wan, CASES["none"])
    dit_accel.calibrate_mag_cache(
        wan, {**NOTHING, "cache": {"kind": "magcache"}}, lambda: render(wan, CASES["none"])
    )
    assert torch.equal(render(wan, CASES["none"]), before)
    report = wan.attention_report()
    assert report.config["density"] == 0.5
    assert report.forwards["transformer"]["skipped"] > 0
    wan.disable_acceleration()
    render(wan, CASES["none"])
    assert wan.attention_report().config["density"] == 0.5


def test_a_bare_transformer_in_a_loop_without_contexts(build_wan) -> None:
    transformer = build_wan().transformer
    inputs = {
        "hidden_states": torch.randn(1, 8, 6, 8, 8, generator=torch.Generator().manual_seed(0)),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }
    cache = {**SKIPPING["first-block"], "min_steps": 20}
    dit_accel.enable_acceleration(transformer, {**NOTHING, "cache": cache})
    with torch.no_grad():
        for timestep in (900, 600, 300):
            transformer(timestep=torch.tensor([timestep]), **inputs)
    told = "the number of steps is unknown, so min_steps of the first-block cache had no effect"
    assert told in dit_accel.attention_report(transformer).remarks
    counts = dit_accel.attention_report(transformer).forwards["transformer"]
    assert counts == {"computed": 1, "skipped": 2}
    dit_accel.disable_acceleration(transformer)
    assert not transformer.is_cache_enabled


def test_every_kind_is_tested() -> None:
    assert set(SKIPPING) == set(IDLE) == set(CACHES)
