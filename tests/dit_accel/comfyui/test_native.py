"""The override of ComfyUI's attention by its contract: the four ways its models call, branches, steps, chaining."""

import math
import uuid

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dit_accel import SVG2, Neighborhood, Profile, Schedule, SVGEar
from dit_accel.comfyui.native import BRANCH, SparseOverride, layout_of
from dit_accel.comfyui.native_guidance import PerturbingOverride, guided, layers_of
from dit_accel.errors import BadInput
from dit_accel.guidance import HeadSet, ModelShape, PerturbedGuidance

EVERYWHERE = Schedule(dense_steps=0.0, min_tokens=0)
FULL = Profile(SVG2(top_p=1.0), EVERYWHERE)
HALF = Profile(SVGEar(density=0.5), EVERYWHERE)
GRID = (3, 4, 6)
TOKENS = math.prod(GRID)


def plain(q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **_) -> Tensor:
    """What ComfyUI's attention computes."""
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def options(step: int = 0, ids: tuple[str, ...] = ("c",), **more) -> dict:
    sigmas = torch.linspace(1, 0, 5)
    found = {"sigmas": sigmas[step].expand(len(ids)), "sample_sigmas": sigmas, "uuids": list(ids)}
    return {**found, "cond_or_uncond": [0], **more}


def tensors(
    batch: int = 2, tokens: int = TOKENS, split: bool = False, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 2, tokens, 16) if split else (batch, tokens, 32)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


CALLS = {
    "wan": {"split": False},
    "flux": {"split": True, "skip_reshape": True},
    "split output": {"split": True, "skip_reshape": True, "skip_output_reshape": True},
    "joined input, split output": {"split": False, "skip_output_reshape": True},
}


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("grid", [True, False], ids=["grid", "no-grid"])
def test_full_selection_is_what_would_have_been(kind: str, grid: bool) -> None:
    how = dict(CALLS[kind])
    q, k, v = tensors(split=how.pop("split"))
    told = options(**({"grid_sizes": torch.Size(GRID)} if grid else {}))
    override = SparseOverride(FULL)
    out = override(
        plain, q, k, v, heads=2, transformer_options=told, _inside_attn_wrapper=True, **how
    )
    assert torch.allclose(out, plain(q, k, v, 2, **how), atol=1e-5)
    assert override.tally.calls["sparse"] == 1
    half = SparseOverride(HALF)(plain, q, k, v, heads=2, transformer_options=told, **how)
    assert half.shape == out.shape
    assert not torch.allclose(half, out, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"transformer_options": {}}, "called outside sampling"),
        ({"mask": torch.zeros(1, 1, 1, TOKENS)}, "attention mask"),
        ({"keys": 7}, "cross attention"),
        ({"tokens": 40}, "fewer than 64 tokens"),
        ({"step": 3}, "outside its part of the steps"),
        ({"method": Neighborhood()}, "neighborhood needs a grid of tokens"),
    ],
    ids=["outside", "mask", "cross", "short", "window", "grid"],
)
def test_what_stays_dense_goes_on_with_all_it_was_given(change: dict, reason: str) -> None:
    method = change.pop("method", SVG2())
    schedule = Schedule(dense_steps=0.0, min_tokens=64)
    seen = {}

    def previous(func, q, k, v, heads, **named):
        seen.update(named)
        return func(q, k, v, heads, **{**named, "mask": None})

    q, k, v = tensors(tokens=change.pop("tokens", TOKENS))
    if "keys" in change:
        k, v = (x[:, : change["keys"]] for x in (k, v))
        change.pop("keys")
    told = change.pop("transformer_options", options(change.pop("step", 0)))
    override = SparseOverride(Profile(method, schedule), (1.0, 0.5), previous)
    named = {"attn_precision": torch.float32, "_inside_attn_wrapper": True, **change}
    out = override(plain, q, k, v, 2, transformer_options=told, **named)
    assert torch.equal(out, plain(q, k, v, 2))
    assert [r for r in override.tally.fallbacks if r.startswith(reason)]
    assert seen["_inside_attn_wrapper"]
    assert seen["transformer_options"] is told
    assert seen["attn_precision"] is torch.float32
    assert seen["mask"] is change.get("mask")


def test_branches_and_layers_never_share_state_and_a_new_run_has_none() -> None:
    profile = Profile(SVG2(refresh=4), EVERYWHERE)
    override = SparseOverride(profile)
    ids = [uuid.uuid4() for _ in range(2)]
    for step in range(2):
        for condition in ids:
            told = options(step, (condition,))
            for _ in range(3):
                override(plain, *tensors(), 2, transformer_options=told)
    assert len(override.states) == 6
    told = options(2, (ids[0],), **{BRANCH: "perturbed"})
    override(plain, *tensors(), 2, transformer_options=told)
    assert len(override.states) == 7
    assert override.tally.plans["reused"] == 6
    first = list(override.states.values())
    override(plain, *tensors(), 2, transformer_options=options(0, (ids[0],)))  # steps go backwards
    assert len(override.states) == 1
    assert all(new is not old for new in override.states.values() for old in first)
    override.reset()
    assert not override.states
    assert "sparse calls of density" in override.report()


def test_steps_and_layers_follow_the_schedule() -> None:
    schedule = Schedule(dense_steps=0.5, dense_layers=(-1,), min_tokens=0)
    override = SparseOverride(Profile(SVG2(), schedule))
    for step in range(4):
        told = options(step, total_blocks=3)
        for _ in range(3):
            override(plain, *tensors(), 2, transformer_options=told)
    assert override.tally.calls["sparse"] == 4  # two layers in each of the last two steps
    assert override.tally.fallbacks["dense by schedule"] == 8


def test_text_before_the_picture_stays_dense_and_is_known() -> None:
    assert layout_of({"img_slice": [8, 80], "grid_sizes": GRID}, 80).text_tokens == 8
    assert layout_of({"img_slice": [8, 80]}, 80).width == 72
    assert layout_of({"grid_sizes": GRID}, 71) is None
    assert layout_of({}, 72) is None
    override = SparseOverride(FULL)
    q, k, v = tensors(tokens=80)
    told = options(img_slice=[8, 80])
    out = override(plain, q, k, v, 2, transformer_options=told)
    assert torch.allclose(out, plain(q, k, v, 2), atol=1e-5)


def test_a_report_without_a_sparse_call_says_why() -> None:
    override = SparseOverride(FULL)
    assert "no call was sparse (none came)" in override.report()
    override(plain, *tensors(), 2, transformer_options={})
    assert "called outside sampling x1" in override.report()


def explicit(q, k, v, heads: int, chosen: tuple[int, ...], softness: float) -> Tensor:
    """The formula on the whole map."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    identity = torch.eye(q.shape[2])
    for head in chosen:
        weights[:, head] = (1 - softness) * weights[:, head] + softness * identity
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("softness", [0.3, 1.0])
@pytest.mark.parametrize("heads", [(0,), (0, 1)], ids=str)
def test_perturbed_layers_follow_the_formula(heads: tuple[int, ...], softness: float) -> None:
    override = PerturbingOverride({1: heads}, PerturbedGuidance(softness=softness))
    told = options()
    for layer in range(3):
        q, k, v = tensors(seed=layer)
        out = override(plain, q, k, v, 2, transformer_options=told)
        chosen = heads if layer == 1 else ()
        assert torch.allclose(out, explicit(q, k, v, 2, chosen, softness), atol=1e-5)
    q, k, v = tensors(seed=5)
    again = override(plain, q, k, v, 2, transformer_options=options())
    assert torch.allclose(again, plain(q, k, v, 2), atol=1e-6)  # the first layer of another call
    assert override(plain, q, k[:, :5], v[:, :5], 2, transformer_options=told).shape == q.shape


def test_layers_are_written_exactly() -> None:
    assert layers_of("13; 7:0,4; blocks.9:*") == {13: None, 7: (0, 4), 9: None}
    with pytest.raises(BadInput, match="layers are written like"):
        layers_of("middle")
    shape = ModelShape("X", {"double": 2, "single": 3}, 4, 16)
    heads = HeadSet(shape, {("single", 1): (0, 3)})
    assert layers_of(heads) == {3: (0, 3)}
    with pytest.raises(BadInput, match="no head 5: heads are 0 to 1"):
        PerturbingOverride({0: (5,)}, PerturbedGuidance())(
            plain, *tensors(), 2, transformer_options=options()
        )


def test_guided_is_the_formula_and_rescale_keeps_the_deviation() -> None:
    denoised, cond, weak = (torch.randn(2, 3, 5, 7) for _ in range(3))
    assert torch.equal(guided(denoised, cond, weak, PerturbedGuidance(scale=0.0)), denoised)
    found = guided(denoised, cond, weak, PerturbedGuidance(scale=2.0))
    assert torch.allclose(found, denoised + 2 * (cond - weak))
    kept = guided(denoised, cond, weak, PerturbedGuidance(scale=2.0, rescale=1.0))
    assert torch.allclose(kept.std((1, 2, 3)), cond.std((1, 2, 3)), rtol=1e-4)
