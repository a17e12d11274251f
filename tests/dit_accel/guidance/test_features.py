"""Guidance together with diffusers' features: caches, LoRA, compiled blocks, offloading, layerwise casting."""

import inspect

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from support.composition import FEATURES, GUIDANCE, METHODS, Case, lora, relative_error, render
from support.tiny_pipelines import TINY

from dit_accel import Schedule

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
HEADS = "blocks.1:1; blocks.2"


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("feature", FEATURES)
def test_with_every_feature(build_wan, feature, guidance) -> None:
    case = Case("svg-ear", "full", guidance, "2 videos", feature)
    pipe = build_wan(two_transformers=feature == "two transformers")
    FEATURES[feature](pipe)
    plain = render(pipe, case)
    pipe.enable_perturbed_guidance(2.0, heads=HEADS)
    if feature == "PyramidAttentionBroadcast":
        with pytest.raises(RuntimeError, match="keeps one state for all branches of a step"):
            render(pipe, case)
        return
    guided = render(pipe, case)
    assert pipe.attention_report().guidance["forwards"] == 4
    assert relative_error(guided, plain) > 1e-3
    assert torch.equal(render(pipe, case), guided), "the second run differs"
    pipe.enable_sparse_attention(METHODS["svg-ear"], schedule=ALWAYS)
    assert relative_error(render(pipe, case), guided) < 1e-4
    assert pipe.attention_report().calls["fallback"] == 0
    pipe.disable_sparse_attention()
    pipe.disable_perturbed_guidance()
    assert torch.equal(render(pipe, case), plain), "the pipeline was not restored"


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_perturbed_branch_has_its_own_cache(build_wan, guidance) -> None:
    case = Case("svg-ear", "full", guidance, "1", "FirstBlockCache")
    pipe = build_wan()
    pipe.enable_perturbed_guidance(2.0, heads=HEADS, share_prefix=False)
    without = render(pipe, case)
    # A threshold of 0 skips no block.
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert torch.equal(render(pipe, case), without)


@pytest.mark.parametrize("feature", [f for f in FEATURES if f != "PyramidAttentionBroadcast"])
def test_blocks_are_shared_unless_they_carry_hooks(build_wan, feature) -> None:
    pipe = build_wan(two_transformers=feature == "two transformers")
    FEATURES[feature](pipe)
    pipe.enable_perturbed_guidance(2.0, heads="blocks.2")
    render(pipe, Case("svg-ear", "full", "none", "1", feature))
    report = pipe.attention_report()
    remarks = [line for line in report.remarks if "shares no blocks" in line]
    has_hooks = feature in ("FirstBlockCache", "MagCache", "group offload")
    assert bool(remarks) == has_hooks
    assert (report.guidance["shared_blocks"] == 0) == has_hooks


def test_step_counting_cache_needs_the_first_step(build_wan, run_wan) -> None:
    pipe = build_wan()
    FEATURES["MagCache"](pipe)
    pipe.enable_perturbed_guidance(2.0, heads=HEADS, interval=(0.0, 0.5))
    run_wan(pipe)
    pipe.enable_perturbed_guidance(2.0, heads=HEADS, interval=(0.5, 1.0))
    with pytest.raises(RuntimeError, match=r"MagCache.* counts the steps of each branch"):
        run_wan(pipe)


def test_guided_run_with_the_guard(wan, run_wan) -> None:
    wan.enable_perturbed_guidance(2.0, heads=HEADS)
    guided = run_wan(wan)
    wan.enable_sparse_attention(METHODS["svg-ear"], schedule=ALWAYS, guard="on")
    guarded = run_wan(wan)
    assert relative_error(guarded, guided) < 1e-4
    assert not wan.attention_report().faults


@pytest.mark.parametrize("family", ["wan", "flux", "hunyuan-video", "sd3", "cogvideox"])
def test_a_lora_scale_in_the_call_applies_to_the_perturbed_forward(family: str) -> None:
    """Diffusers reads the scale from a keyword argument of the forward."""
    row = TINY[family]
    pipe = row.build()
    lora(pipe)
    pipe.enable_perturbed_guidance(2.0)
    names = inspect.signature(type(pipe).__call__).parameters
    name = "joint_attention_kwargs" if "joint_attention_kwargs" in names else "attention_kwargs"
    full = row.run(pipe, cfg=True)
    by_call = row.run(pipe, cfg=True, **{name: {"scale": 0.5}})
    pipe.transformer.set_adapters(["default"], [0.5])
    by_weight = row.run(pipe, cfg=True)
    torch.testing.assert_close(by_call, by_weight, rtol=0, atol=1e-4)
    assert not torch.allclose(by_call, full, rtol=0, atol=1e-2)
