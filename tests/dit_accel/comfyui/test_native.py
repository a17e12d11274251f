"""The override of ComfyUI's attention by its contract: the four ways its models call, branches, steps, chaining."""

import math
import sys
import uuid
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dit_accel import SVG2, Dense, Neighborhood, Profile, Rule, Schedule, SVGEar
from dit_accel.comfyui import native_nodes
from dit_accel.comfyui.native_attention import KEY, ModelCall, where
from dit_accel.comfyui.native_guidance import Perturbation, guided, layers_of
from dit_accel.comfyui.sparse_override import SparseOverride
from dit_accel.errors import InvalidSettings
from dit_accel.guidance import HeadSet, ModelShape, PerturbedGuidance

EVERYWHERE = Schedule(dense_steps=0.0, min_tokens=0)
FULL = Profile(SVG2(top_p=1.0), EVERYWHERE)
HALF = Profile(SVGEar(density=0.5), EVERYWHERE)
TOKENS = 3 * 4 * 6
SIGMAS = torch.linspace(1, 0, 5)


def plain(q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **_) -> Tensor:
    """What ComfyUI's attention computes."""
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def options(ids: tuple[Any, ...] = ("c",), **more: Any) -> dict:
    return {"sample_sigmas": SIGMAS, "uuids": list(ids), "cond_or_uncond": [0], **more}


def call_of(
    step: int = 0,
    told: dict | None = None,
    seen: Counter | None = None,
    previous: Any = None,
    cells: tuple[int, ...] = (3, 8, 12),
) -> ModelCall:
    """A model call at a step, of a latent whose 2 x 2 cells are the tokens."""
    at = where(
        torch.zeros(1, 4, *cells),
        SIGMAS[step : step + 1],
        told or options(),
        Counter() if seen is None else seen,
    )
    return ModelCall(at, previous)


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
def test_full_selection_is_what_would_have_been(kind: str) -> None:
    how = dict(CALLS[kind])
    q, k, v = tensors(split=how.pop("split"))
    told = {"transformer_options": options(), "_inside_attn_wrapper": True}
    override = SparseOverride(FULL)
    out = override.attention(call_of())(plain, q, k, v, heads=2, **told, **how)
    assert torch.allclose(out, plain(q, k, v, 2, **how), atol=1e-5)
    assert override.run.stats.calls["sparse"] == 1
    half = SparseOverride(HALF).attention(call_of())(plain, q, k, v, heads=2, **told, **how)
    assert half.shape == out.shape
    assert not torch.allclose(half, out, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask": torch.zeros(1, 1, 1, TOKENS)}, "attention mask"),
        ({"keys": 7}, "cross attention"),
        ({"tokens": 40}, "fewer tokens than the picture has"),
        ({"step": 3}, "outside its part of the steps"),
        ({"tokens": 79, "method": Neighborhood()}, "neighborhood needs tokens that lie in a grid"),
        ({"least": 100}, "fewer than 100 tokens"),
        ({"method": Dense()}, "dense by schedule"),
    ],
    ids=["mask", "cross", "refiner", "window", "grid", "short", "dense"],
)
def test_what_stays_dense_goes_on_with_all_it_was_given(change: dict, reason: str) -> None:
    change = dict(change)
    schedule = Schedule(dense_steps=0.0, min_tokens=change.pop("least", 0))
    seen = {}

    def previous(func, q, k, v, heads, **named):
        seen.update(named)
        return func(q, k, v, heads, **{**named, "mask": None})

    q, k, v = tensors(tokens=change.pop("tokens", TOKENS))
    keys = change.pop("keys", None)
    k, v = (x[:, :keys] for x in (k, v))
    call = call_of(change.pop("step", 0), previous=previous)
    override = SparseOverride(Profile(change.pop("method", SVG2()), schedule), (1.0, 0.5))
    told = options()
    named = {"attn_precision": torch.float32, "_inside_attn_wrapper": True, **change}
    out = override.attention(call)(plain, q, k, v, 2, transformer_options=told, **named)
    assert torch.equal(out, plain(q, k, v, 2))
    assert list(override.run.stats.fallbacks) == [
        r for r in override.run.stats.fallbacks if reason in r
    ]
    assert seen["_inside_attn_wrapper"]
    assert seen["transformer_options"] is told
    assert seen["attn_precision"] is torch.float32
    assert seen["mask"] is change.get("mask")


def test_the_window_is_as_wide_as_float32_says() -> None:
    """ComfyUI computes the sigma of a share in float64, and the run's own in float32."""
    sigma = float(SIGMAS[1]) * (1 - 1e-8)
    override = SparseOverride(FULL, (sigma, -math.inf))
    override.attention(call_of(1))(plain, *tensors(), 2, transformer_options=options())
    assert override.run.stats.calls["sparse"] == 1


def runs(override: SparseOverride, step: int, told: dict, layers: int = 3) -> None:
    """One model call."""
    attend = override.attention(call_of(step, told, override.seen))
    for layer in range(layers):
        attend(plain, *tensors(seed=layer), 2, transformer_options=told)


def test_nothing_of_two_streams_is_shared_and_a_new_run_has_nothing() -> None:
    override = SparseOverride(Profile(SVG2(refresh=4), EVERYWHERE))
    ids = [uuid.uuid4() for _ in range(2)]
    windows = [SimpleNamespace(index_list=part) for part in ([0, 1, 2], [3, 4, 5])]
    for step in range(2):
        for condition in ids:
            runs(override, step, options((condition,)))
            for window in windows:
                runs(override, step, options((condition,), context_window=window))
        runs(override, step, options((ids[0],)), layers=2)  # another node's pass at the same sigma
    assert len(override.run.states) == 2 * 3 * 3 + 2
    assert override.run.stats.plans["reused"] == override.run.stats.plans["made"] == 20
    runs(override, 0, options((ids[0],)), layers=1)  # heunpp2 goes back: nothing is lost
    assert len(override.run.states) == 20
    override.begin()
    assert not override.run.states
    assert not override.run.stats.calls


def test_steps_layers_and_branches_follow_the_profile() -> None:
    rule = Rule(branch="uncond", dense=True)
    schedule = Schedule(dense_steps=0.5, dense_layers=(0, -1), min_tokens=0, rules=(rule,))
    override = SparseOverride(Profile(SVG2(), schedule))
    override.layers = 3
    for step in range(4):
        runs(override, step, options())
        runs(override, step, options(cond_or_uncond=[1]))
    assert override.run.stats.calls["sparse"] == 2  # the middle layer in each of the last two steps
    assert override.run.stats.fallbacks["dense by schedule"] == 22


def test_a_refiner_before_the_blocks_is_no_layer() -> None:
    override = SparseOverride(FULL)
    attend = override.attention(call_of())
    attend(plain, *tensors(tokens=7), 2, transformer_options=options())
    attend(plain, *tensors(), 2, transformer_options=options())
    assert list(override.run.stats.layer_densities()) == ["layer 0"]


def test_grids_and_text() -> None:
    at = call_of().where
    grids = {
        n: at.layout(more, n)
        for n, more in ((72, {}), (288, {}), (79, {}), (80, {"img_slice": [8, 80]}))
    }
    assert (grids[72].frames, grids[72].height, grids[72].width) == (3, 4, 6)
    assert (grids[288].height, grids[288].width) == (8, 12)
    assert grids[79] is None
    assert (grids[80].text_tokens, grids[80].text_first, grids[80].width) == (8, True, 6)
    assert at.layout({"grid_sizes": (1, 1, 79)}, 79).width == 79
    picture = call_of(cells=(9, 7)).where
    assert picture.least_tokens == 12
    assert picture.layout({}, 20).height == 5
    text = torch.zeros(1, 7, 24)
    for model, first in (("Flux", True), ("HunyuanVideo", False)):
        joint = where(torch.zeros(1, 4, 3, 8, 12), SIGMAS[:1], options(), Counter(), text, model)
        found = joint.layout({}, 79)
        assert (found.text_tokens, found.text_first, found.width) == (7, first, 6)
        assert joint.layout({}, 72).text_tokens == 0
    window = SparseOverride(Profile(Neighborhood(density=0.5), EVERYWHERE))
    window.attention(call_of())(plain, *tensors(), 2, transformer_options=options())
    assert window.run.stats.calls["sparse"] == 1


def test_a_report_says_why_calls_stayed_dense() -> None:
    override = SparseOverride(FULL, (0.5, -math.inf))
    assert "no call was sparse; dense: none" in override.report()
    runs(override, 0, options())
    assert "dense: outside its part of the steps x3" in override.report()
    runs(override, 3, options())
    assert "3 sparse calls of density 1.00" in override.report()


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
    perturbation = Perturbation({1: heads, 9: None}, PerturbedGuidance(softness=softness))
    attend, told = perturbation.attention(call_of()), options()
    attend(plain, *tensors(tokens=7), 2, transformer_options=told)  # a refiner counts nothing
    for layer in range(3):
        q, k, v = tensors(seed=layer)
        out = attend(plain, q, k, v, 2, transformer_options=told)
        chosen = heads if layer == 1 else ()
        assert torch.allclose(out, explicit(q, k, v, 2, chosen, softness), atol=1e-5)
    assert attend(plain, q, k[:, :5], v[:, :5], 2, transformer_options=told).shape == q.shape
    assert perturbation.missing() == [9]


@pytest.mark.parametrize("turned", [False, True], ids=["in order", "sorted file"])
def test_layers_of_a_head_set_are_in_the_models_order(turned) -> None:
    blocks = {"transformer_blocks": 2, "single_transformer_blocks": 3}
    blocks = dict(sorted(blocks.items())) if turned else blocks
    place = ("single_transformer_blocks", 1)
    heads = HeadSet(ModelShape("FluxTransformer2DModel", blocks, 4, 16), {place: (0, 3)})
    assert layers_of(heads) == {3: (0, 3)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("X", "order of the blocks in this head set is unknown: no family declares X"),
        (
            "FluxTransformer2DModel",
            "has the block lists transformer_blocks, single_transf.*, not a, b",
        ),
    ],
)
def test_a_head_set_whose_order_nothing_tells_is_refused(name, message) -> None:
    with pytest.raises(InvalidSettings, match=message):
        layers_of(HeadSet(ModelShape(name, {"a": 2, "b": 3}, 4, 16), {("b", 1): (0, 3)}))


def test_layers_are_written_exactly() -> None:
    assert layers_of("13; 7:0,4; blocks.9:*") == {13: None, 7: (0, 4), 9: None}
    assert layers_of("7:0; 7:4; 9:1; 9:*; 9:2") == {7: (0, 4), 9: None}
    with pytest.raises(InvalidSettings, match="layers are written like"):
        layers_of("middle")
    shape = ModelShape("X", {"blocks": 3}, 4, 16)
    assert layers_of(HeadSet(shape, {("blocks", 1): (0, 3)})) == {1: (0, 3)}
    with pytest.raises(InvalidSettings, match="no head 5: heads are 0 to 1"):
        Perturbation({0: (5,)}, PerturbedGuidance()).attention(call_of())(
            plain, *tensors(), 2, transformer_options=options()
        )


def samplers(layers: int) -> dict[str, Any]:
    """What of ComfyUI one extra pass needs, around a model of some layers of 2 heads of 16."""

    def model(x: Tensor, sigma: Tensor, transformer_options: dict) -> Tensor:
        attend = transformer_options[KEY]
        for layer in range(layers):
            attend(plain, *tensors(seed=layer), 2, transformer_options=transformer_options)
        return x

    def calc_cond_batch(model_: Any, conds: Any, x: Tensor, sigma: Tensor, given: dict) -> tuple:
        told = given["transformer_options"]
        (around,) = told["wrappers"]["apply_model"]["dit_accel_perturbed"]
        return (around(model, x, sigma, transformer_options=told),)

    kinds = SimpleNamespace(APPLY_MODEL="apply_model")
    parts = {
        "comfy.samplers": SimpleNamespace(calc_cond_batch=calc_cond_batch),
        "comfy.patcher_extension": SimpleNamespace(WrappersMP=kinds),
    }
    named = {name.removeprefix("comfy."): part for name, part in parts.items()}
    return {"comfy": SimpleNamespace(**named), **parts}


DUAL = {"transformer_blocks": 1, "single_transformer_blocks": 2}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((DUAL, 2, 16), None),
        ((DUAL, 4, 16), "heads 2 instead of 4"),
        ((DUAL, 2, 8), "head_dim 16 instead of 8"),
        (({"blocks": 4}, 2, 16), "3 self-attentions over the picture instead of 4"),
        (({"blocks": 2}, 2, 16), "3 self-attentions over the picture instead of 2"),
    ],
    ids=str,
)
def test_a_head_set_of_another_model_is_refused(shape, message, monkeypatch) -> None:
    for name, part in samplers(layers=3).items():
        monkeypatch.setitem(sys.modules, name, part)
    heads = HeadSet(ModelShape("FluxTransformer2DModel", *shape), {(next(iter(shape[0])), 0): (1,)})
    patcher, calls = Mock(), []
    patcher.clone.return_value.set_model_sampler_post_cfg_function = calls.append
    native_nodes.guidance(patcher, 2.0, "0", 1.0, 0.0, 1.0, 0.0, heads)
    x = torch.randn(1, 4, 3, 8, 12)
    given = {"sigma": SIGMAS[:1], "input": x, "denoised": x, "cond_denoised": x, "cond": None}
    given |= {"model": Mock(), "model_options": {"transformer_options": options()}}
    if message is None:
        assert torch.equal(calls[0](given), x)
        return
    with pytest.raises(
        InvalidSettings, match=f"this head set belongs to another model: here {message}"
    ):
        calls[0](given)


def test_guided_is_the_formula_and_rescale_keeps_the_deviation() -> None:
    denoised, cond, weak = (torch.randn(2, 3, 5, 7) for _ in range(3))
    assert torch.equal(guided(denoised, cond, weak, PerturbedGuidance(scale=0.0)), denoised)
    found = guided(denoised, cond, weak, PerturbedGuidance(scale=2.0))
    assert torch.allclose(found, denoised + 2 * (cond - weak))
    kept = guided(denoised, cond, weak, PerturbedGuidance(scale=2.0, rescale=1.0)) - denoised
    difference = 2 * (cond - weak)
    ratio = cond.std((1, 2, 3)) / (cond + difference).std((1, 2, 3))
    assert torch.allclose(kept, ratio[:, None, None, None] * difference, atol=1e-6)
