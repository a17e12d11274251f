"""Levers that cannot work are refused by name, and the pipeline is unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.composition import group_offload, render
from support.levers import CASES, IDLE, NOTHING, SKIPPING, snapshot, tiny

from dit_accel import InvalidSettings

REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no ratios": ({"cache": {"kind": "magcache"}}, "needs mag_ratios of transformer"),
    "rows": ({"cache": {"kind": "fastercache"}}, "pipelines of wan run none"),
    "no match": (
        {
            "cache": {
                "kind": "taylorseer",
                "use_lite_mode": False,
                "cache_identifiers": ["nothing"],
            }
        },
        "matches no module of WanTransformer3DModel",
    ),
    "device": (
        {"linears": {"kind": "fp8-dynamic"}},
        "needs a CUDA device of compute capability 8.9",
    ),
    "skip": ({"linears": {"kind": "int8-weights", "skip": ["proj_x"]}}, "has 'proj_x' in its name"),
    "all skipped": ({"linears": {"kind": "int8-weights", "skip": ["blocks"]}}, "no linear layer"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_by_name_and_changes_nothing(build_wan, name: str) -> None:
    levers, message = REFUSALS[name]
    pipe = build_wan()
    pipe.enable_perturbed_guidance(2.0)
    guided, before = render(pipe, CASES["none"]), snapshot(pipe)
    with pytest.raises(InvalidSettings, match=message):
        pipe.enable_acceleration({**NOTHING, **levers})
    assert {key: value[1] for key, value in snapshot(pipe).items()} == {
        key: value[1] for key, value in before.items()
    }
    assert torch.equal(render(pipe, CASES["none"]), guided)


def test_refuses_a_last_step_for_two_experts(build_wan) -> None:
    pipe = build_wan(two_transformers=True)
    cache = {**SKIPPING["taylorseer"], "disable_cache_after_step": 3}
    with pytest.raises(InvalidSettings, match="counts the steps of each transformer"):
        pipe.enable_acceleration({**NOTHING, "cache": cache})


def test_refuses_attention_that_is_enabled_after_a_cache_as_in_one_profile(build_wan) -> None:
    pipe = build_wan()
    pipe.enable_acceleration({**NOTHING, "cache": SKIPPING["first-block"]})
    before = render(pipe, CASES["none"])
    with pytest.raises(InvalidSettings, match="guard 'on' runs forwards again"):
        pipe.enable_sparse_attention("svg2", guard="on")
    assert torch.equal(render(pipe, CASES["none"]), before)


def test_refuses_what_the_user_enabled_before(build_wan) -> None:
    from diffusers import FirstBlockCacheConfig

    pipe = build_wan()
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(InvalidSettings, match="has a cache already"):
        pipe.enable_acceleration({"cache": IDLE["first-block"]})
    pipe = build_wan()
    pipe.transformer.compile_repeated_blocks(backend="aot_eager")
    with pytest.raises(InvalidSettings, match="are compiled already"):
        pipe.enable_acceleration({"compile": {}})
    with pytest.raises(InvalidSettings, match="a cache cannot decide inside their graphs"):
        pipe.enable_acceleration({"cache": IDLE["first-block"]})
    pipe = build_wan()
    group_offload(pipe)
    with pytest.raises(InvalidSettings, match="enable acceleration first, then offload"):
        pipe.enable_acceleration({"linears": {"kind": "int8-weights"}})


def test_a_model_without_caches_is_refused() -> None:
    pipe, _ = tiny("sd3")
    with pytest.raises(InvalidSettings, match="SD3Transformer2DModel takes no cache"):
        pipe.enable_acceleration({"cache": IDLE["first-block"]})
