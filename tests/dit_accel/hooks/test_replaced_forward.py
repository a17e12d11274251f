"""A transformer whose forward others replace after attention was enabled."""

from __future__ import annotations

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from support.tiny_pipelines import TINY

from dit_accel import SVG2, Schedule
from dit_accel.errors import RunFailed
from dit_accel.runtime.active_sessions import session_of

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
COARSE = SVG2(query_clusters=4, key_clusters=12, top_p=0.5, min_key_share=0.0)
FAMILIES = ["wan", "hunyuan-video", "flux"]


def drop_forward(transformer) -> None:
    """Set the class's own forward again, like a library that ends its patch."""
    vars(transformer).pop("forward", None)


def wrap_class_forward(transformer) -> None:
    """Set a wrapper of the class's own forward, which knows nothing of hooks."""
    inner = type(transformer).forward
    transformer.forward = lambda *args, **kwargs: inner(transformer, *args, **kwargs)


def wrap_forward(transformer) -> None:
    inner = transformer.forward
    transformer.forward = lambda *args, **kwargs: inner(*args, **kwargs)


def accelerate_hook(transformer) -> None:
    add_hook_to_module(transformer, ModelHook())


LOSING = {"dropped": drop_forward, "wrapped class": wrap_class_forward}
KEEPING = {"wrapped": wrap_forward, "accelerate": accelerate_hook}


@pytest.mark.parametrize("replace", LOSING)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lost_hook_comes_back_with_the_next_forward(family: str, replace: str) -> None:
    row = TINY[family]
    pipe = row.build()
    plain = row.run(pipe)
    pipe.enable_sparse_attention(COARSE, schedule=ALWAYS)
    expected = row.run(pipe)
    LOSING[replace](pipe.transformer)
    with pytest.warns(UserWarning, match="only this forward is dense"):
        row.run(pipe)
    calls = pipe.attention_report().calls
    assert calls["sparse"] > 0
    assert torch.equal(row.run(pipe), expected)
    assert pipe.attention_report().calls["fallback"] == 0
    pipe.disable_sparse_attention()
    assert session_of(pipe) is None
    assert torch.equal(row.run(pipe), plain)


@pytest.mark.parametrize("replace", LOSING)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_guided_run_without_the_hook_is_refused_once(family: str, replace: str) -> None:
    row = TINY[family]
    pipe = row.build()
    plain = row.run(pipe)
    pipe.enable_perturbed_guidance(2.0)
    expected = row.run(pipe)
    LOSING[replace](pipe.transformer)
    with pytest.raises(RunFailed, match="the forward is hooked again, so run the pipeline again"):
        row.run(pipe)
    assert torch.equal(row.run(pipe), expected)
    pipe.disable_perturbed_guidance()
    assert torch.equal(row.run(pipe), plain)


@pytest.mark.parametrize("replace", KEEPING)
@pytest.mark.parametrize("first", ["attention", "other"])
def test_a_hook_that_others_wrap_stays(first: str, replace: str) -> None:
    row = TINY["wan"]
    pipe = row.build()
    plain = row.run(pipe)
    steps = [lambda: pipe.enable_sparse_attention(COARSE, schedule=ALWAYS)]
    steps.insert(0 if first == "other" else 1, lambda: KEEPING[replace](pipe.transformer))
    for step in steps:
        step()
    clips = [row.run(pipe) for _ in range(3)]
    assert all(torch.equal(clip, clips[0]) for clip in clips)
    assert not torch.equal(clips[0], plain)
    assert pipe.attention_report().calls["fallback"] == 0
    if replace == "accelerate":
        remove_hook_from_module(pipe.transformer)
        assert torch.equal(row.run(pipe), clips[0])
    pipe.disable_sparse_attention()
    assert torch.equal(row.run(pipe), plain)


@pytest.mark.parametrize("guided", [False, True], ids=["sparse", "guided"])
def test_a_forward_dropped_with_the_offload_hook_is_hooked_again(guided: bool) -> None:
    row = TINY["wan"]
    pipe = row.build()
    plain = row.run(pipe)
    add_hook_to_module(pipe.transformer, ModelHook())
    pipe.enable_sparse_attention(COARSE, schedule=ALWAYS)
    if guided:
        pipe.enable_perturbed_guidance(2.0)
    expected = row.run(pipe)
    drop_forward(pipe.transformer)
    try:
        row.run(pipe)
    except RunFailed:
        assert guided
    assert torch.equal(row.run(pipe), expected)
    assert pipe.attention_report().calls["fallback"] == 0
    pipe.disable_perturbed_guidance()
    pipe.disable_sparse_attention()
    assert torch.equal(row.run(pipe), plain)
