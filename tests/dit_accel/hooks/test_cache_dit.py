"""The package cache-dit below and above the verbs: what works, what is refused, and that both are undone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from support.composition import render
from support.levers import CASES, NOTHING, SKIPPING, SPARSE, tiny

from dit_accel import InvalidSettings, Profile, RunFailed

CASE = CASES["separate"]
GUARDED = {**SPARSE, "guard": {"mode": "on"}}


class ContextManager:
    """A stand-in for cache-dit's object of that name."""

    __module__ = "cache_dit.caching.cache_contexts.cache_manager"


def enable_stand_in(transformer: Any) -> None:
    """Replace the forward as cache-dit 1.5 does."""
    original = transformer.forward
    transformer._original_forward = original
    transformer._context_manager = ContextManager()

    def new_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    partial = functools.partial(new_forward, transformer)
    transformer.forward = functools.update_wrapper(partial, new_forward)


def disable_stand_in(transformer: Any) -> None:
    """Put the forward back as cache-dit 1.5 does."""
    transformer.forward = transformer._original_forward.__get__(transformer)
    del transformer._original_forward, transformer._context_manager


def both_orders(pipe: Any, run: Callable[[], torch.Tensor], profile: dict[str, Any]) -> None:
    """Check a profile below and above the stand-in, undone in either order."""
    plain = run()
    with pipe.enable_acceleration(profile):
        expected = run()
    assert not torch.equal(expected, plain)
    for first in ("ours", "theirs"):
        for last in ("ours", "theirs"):
            steps = {
                "ours": (lambda: pipe.enable_acceleration(profile), pipe.disable_acceleration),
                "theirs": (
                    lambda: enable_stand_in(pipe.transformer),
                    lambda: disable_stand_in(pipe.transformer),
                ),
            }
            other = {"ours": "theirs", "theirs": "ours"}
            for name in (first, other[first]):
                steps[name][0]()
            assert torch.equal(run(), expected), f"{first} enabled first"
            for name in (other[last], last):
                steps[name][1]()
            assert torch.equal(run(), plain), f"{first} enabled first, {last} undone last"


@pytest.mark.parametrize("family", ["wan", "flux"])
def test_a_patch_like_theirs_in_every_order(family: str) -> None:
    pipe, run = tiny(family)
    both_orders(pipe, run, SPARSE)


def test_what_is_refused(wan) -> None:
    enable_stand_in(wan.transformer)
    with pytest.raises(InvalidSettings, match="cached by cache-dit, and two caches"):
        wan.enable_acceleration({**NOTHING, "cache": SKIPPING["first-block"]})
    wan.enable_acceleration(GUARDED)
    with pytest.raises(RuntimeError, match="under cache-dit, which would count it twice"):
        render(wan, CASE)
    wan.disable_acceleration()
    wan.enable_perturbed_guidance(2.0)
    with pytest.raises(RunFailed, match="perturbed guidance cannot run with cache-dit"):
        render(wan, CASE)
    wan.disable_perturbed_guidance()
    with pytest.raises(InvalidSettings, match="a profile cannot apply and undo it"):
        Profile.from_dict({"cache": {"kind": "cache-dit"}})


def test_the_report_names_it(wan) -> None:
    enable_stand_in(wan.transformer)
    wan.enable_acceleration(SPARSE)
    render(wan, CASE)
    assert "cache-dit, which was enabled beside, left out 0 attention calls" in str(
        wan.attention_report()
    )


@pytest.fixture
def cache_dit() -> ModuleType:
    return pytest.importorskip("cache_dit")


def enable(cache_dit: ModuleType, pipe: Any) -> None:
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=1,
        residual_diff_threshold=10.0,
        num_inference_steps=4,
    )
    cache_dit.enable_cache(pipe, cache_config=config)


@pytest.mark.parametrize("family", ["wan", "flux"])
@pytest.mark.parametrize("lever", ["nothing", "attention", "linears"])
@pytest.mark.parametrize("order", ["below", "above"])
def test_the_real_one(cache_dit: ModuleType, family: str, lever: str, order: str) -> None:
    profile = {
        "nothing": NOTHING,
        "attention": SPARSE,
        "linears": {**NOTHING, "linears": {"kind": "int8-weights"}},
    }[lever]
    pipe, run = tiny(family)
    plain, call = run(), type(pipe).__call__
    enable(cache_dit, pipe)
    cached = run()
    cache_dit.disable_cache(pipe)
    assert not torch.equal(cached, plain)
    steps = [lambda: enable(cache_dit, pipe), lambda: pipe.enable_acceleration(profile)]
    for step in steps if order == "below" else reversed(steps):
        step()
    both = run()
    assert torch.equal(run(), both)
    assert torch.equal(both, cached) == (lever == "nothing")
    assert "left out 0 attention calls" not in str(pipe.attention_report())
    undo = [pipe.disable_acceleration, lambda: cache_dit.disable_cache(pipe)]
    for step in undo if order == "below" else reversed(undo):
        step()
    assert type(pipe).__call__ is call
    assert torch.equal(run(), plain)
    # Undone in the order in which they were enabled.
    for step in steps if order == "below" else reversed(steps):
        step()
    for step in reversed(undo) if order == "below" else undo:
        step()
    assert torch.equal(run(), plain)
