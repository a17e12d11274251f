"""Step caches on models that their skipped forwards would render wrong: refused by name, and left out of presets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from support.levers import NOTHING, SKIPPING, tiny
from torch import nn

import dit_accel
from dit_accel import InvalidSettings, RunFailed
from dit_accel.core.caches import cache_of
from dit_accel.guidance.cache_checks import check_caches
from dit_accel.hooks.step_cache import Position, StepCache, check_cache_kind
from dit_accel.runtime.presets import preset_profile
from dit_accel.runtime.recipes import ModelTraits
from dit_accel.targets import profile_of
from dit_accel_pipelines import find_family

REPLACING = ("first-block", "magcache", "seacache")


@pytest.mark.parametrize("kind", REPLACING)
@pytest.mark.parametrize(
    ("model", "term"),
    [
        (diffusers.WanVACETransformer3DModel, "control hints"),
        (diffusers.WanAnimateTransformer3DModel, "the motion of the face"),
    ],
    ids=["vace", "animate"],
)
def test_terms_between_the_blocks_would_count_twice(model: type, term: str, kind: str) -> None:
    family = find_family(model.__name__)
    with pytest.raises(InvalidSettings, match=f"adds {term} between them, which would count twice"):
        check_cache_kind(model, cache_of(SKIPPING[kind]), family)
    check_cache_kind(model, cache_of(SKIPPING["taylorseer"]), family)


@pytest.mark.parametrize("name", ["LTX2VideoTransformer3DModel", "MiniMaxH3Transformer3DModel"])
def test_taylorseer_has_one_output_and_these_have_two(name: str) -> None:
    model = getattr(diffusers, name, None)
    if model is None:
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    with pytest.raises(InvalidSettings, match="has a second one for sound"):
        check_cache_kind(model, cache_of(SKIPPING["taylorseer"]), find_family(name))


def test_a_preset_leaves_such_a_cache_out() -> None:
    traits = ModelTraits("wan-vace", steps=50, tokens=70_000, device="cuda", takes_cache=False)
    assert preset_profile("balanced", traits).cache is None


def test_a_preset_leaves_the_cache_out_beside_a_controlnet() -> None:
    pipe, _ = tiny("flux")
    assert profile_of("balanced", pipe).cache is not None
    pipe.controlnet = object()
    assert profile_of("balanced", pipe).cache is None


def test_residuals_of_a_controlnet_are_refused_in_the_first_forward() -> None:
    pipe, run = tiny("flux")
    calls: list[dict[str, Any]] = []
    transformer = pipe.transformer
    hook = transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    run()
    hook.remove()
    with torch.no_grad():
        tokens = transformer.x_embedder(calls[0]["hidden_states"])
        control = {**calls[0], "controlnet_block_samples": [torch.ones_like(tokens)]}
        for kind in ("first-block", "seacache"):
            with (
                dit_accel.enable_acceleration(transformer, {**NOTHING, "cache": SKIPPING[kind]}),
                pytest.raises(RunFailed, match="a ControlNet adds terms between them"),
            ):
                transformer(**control)
        plain = transformer(**control)[0]
        profile = {**NOTHING, "cache": SKIPPING["taylorseer"]}
        with dit_accel.enable_acceleration(transformer, profile):
            assert torch.equal(transformer(**control)[0], plain)


def test_seacache_looks_at_the_denoised_channels_alone() -> None:
    class ImageToVideo(nn.Module):
        config = {"in_channels": 36, "out_channels": 16}  # noqa: RUF012

        def forward(self, hidden_states: torch.Tensor) -> None: ...

    cache = StepCache.__new__(StepCache)
    cache.position = Position()
    latents = torch.randn(2, 36, 3, 4, 4)
    found = cache._visual_latents(ImageToVideo(), (latents,), {})
    assert [torch.equal(one, two[:16]) for one, two in zip(found, latents, strict=True)] == [
        True
    ] * 2


@pytest.mark.parametrize("kind", ["magcache", "taylorseer", "seacache", "pab", "fastercache"])
def test_guidance_that_starts_late_is_refused_with_caches_that_count(build_wan, kind: str) -> None:
    pipe = build_wan()
    with pipe.enable_acceleration({**NOTHING, "cache": SKIPPING[kind]}):
        check_caches(pipe.transformer, SimpleNamespace(interval=(0.0, 1.0)))
        with pytest.raises(RunFailed, match="whose interval starts after 0 cannot run with"):
            check_caches(pipe.transformer, SimpleNamespace(interval=(0.5, 1.0)))
