"""Sparse attention and guidance in ComfyUI's own models, without ComfyUI: the contract of its attention override."""

import math
import sys
import uuid
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from support.comfyui_calls import (
    SIGMAS,
    TOKENS,
    dense_attention,
    make_call,
    make_options,
    make_tensors,
)
from torch import Tensor

from dit_accel import SVG2, Dense, Neighborhood, Profile, Rule, Schedule, SVGEar
from dit_accel.comfyui import native_nodes
from dit_accel.comfyui.model_call import OVERRIDE_KEY
from dit_accel.comfyui.native_guidance import PerturbedOverride, add_guidance, resolve_layers
from dit_accel.comfyui.sparse_override import SparseOverride
from dit_accel.errors import InvalidSettings
from dit_accel.guidance import HeadSet, ModelShape, PerturbedGuidance

EVERYWHERE = Schedule(dense_steps=0.0, min_tokens=0)
FULL = Profile(SVG2(top_p=1.0), EVERYWHERE)
HALF = Profile(SVGEar(density=0.5), EVERYWHERE)


CALLS = {
    "wan": {"split": False},
    "flux": {"split": True, "skip_reshape": True},
    "split output": {"split": True, "skip_reshape": True, "skip_output_reshape": True},
    "joined input, split output": {"split": False, "skip_output_reshape": True},
}


@pytest.mark.parametrize("kind", CALLS)
def test_full_selection_equals_dense_attention(kind: str) -> None:
    shapes = dict(CALLS[kind])
    q, k, v = make_tensors(split=shapes.pop("split"))
    keywords = {"transformer_options": make_options(), "_inside_attn_wrapper": True, **shapes}
    full, half = SparseOverride(FULL), SparseOverride(HALF)
    attended = full.build_attention(make_call())(dense_attention, q, k, v, heads=2, **keywords)
    assert torch.allclose(attended, dense_attention(q, k, v, 2, **shapes), atol=1e-5)
    assert full.run.stats.calls["sparse"] == 1
    other = half.build_attention(make_call())(dense_attention, q, k, v, heads=2, **keywords)
    assert other.shape == attended.shape
    assert not torch.allclose(other, attended, atol=1e-3)


def test_dense_steps_warm_the_centroids() -> None:
    """A clustered method with dense_kmeans clusters in the dense steps of a profile, too."""
    found = {}
    for warm in (False, True):
        method = SVG2(query_clusters=4, kmeans_iterations=(1, 1), dense_kmeans=warm)
        override = SparseOverride(Profile(method, Schedule(dense_steps=0.5, min_tokens=0)))
        seen: Counter = Counter()
        for step in range(3):
            q, k, v = make_tensors()
            override.build_attention(make_call(step, seen_calls=seen))(
                dense_attention, q, k, v, heads=2, transformer_options=make_options()
            )
        assert override.run.stats.calls["sparse"] == 1
        (state,) = override.run.states.values()
        found[warm] = state.query_centroids
    assert not torch.equal(found[False], found[True])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Tensor.double, "another dtype than float32"),
        (lambda x: x.clone().requires_grad_(), "gradients flow through the attention"),
    ],
    ids=["float64", "gradients"],
)
def test_tensors_that_no_method_can_handle_are_passed_on(make, reason: str) -> None:
    q, k, v = (make(x) for x in make_tensors())
    override = SparseOverride(HALF)
    attention = override.build_attention(make_call())
    attended = attention(dense_attention, q, k, v, 2, transformer_options=make_options())
    assert torch.equal(attended, dense_attention(q, k, v, 2))
    (fallback,) = override.run.stats.fallbacks
    assert reason in fallback


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask": torch.zeros(1, 1, 1, TOKENS)}, "attention mask"),
        ({"keys": 7}, "cross attention"),
        ({"tokens": 40}, "fewer tokens than the image has"),
        ({"step": 3}, "outside the chosen part of the steps"),
        ({"tokens": 79, "method": Neighborhood()}, "neighborhood needs tokens that lie in a grid"),
        ({"min_tokens": 100}, "fewer than 100 tokens"),
        ({"method": Dense()}, "dense by schedule"),
    ],
    ids=["mask", "cross", "refiner", "window", "grid", "short", "dense"],
)
def test_dense_calls_are_passed_on_with_all_arguments(change: dict, reason: str) -> None:
    change = dict(change)
    schedule = Schedule(dense_steps=0.0, min_tokens=change.pop("min_tokens", 0))
    received = {}

    def previous(func, q, k, v, heads, **keywords):
        received.update(keywords)
        return func(q, k, v, heads, **{**keywords, "mask": None})

    q, k, v = make_tensors(tokens=change.pop("tokens", TOKENS))
    keys = change.pop("keys", None)
    k, v = (x[:, :keys] for x in (k, v))
    call = make_call(change.pop("step", 0), previous=previous)
    override = SparseOverride(Profile(change.pop("method", SVG2()), schedule), (1.0, 0.5))
    options = make_options()
    keywords = {"attn_precision": torch.float32, "_inside_attn_wrapper": True, **change}
    attention = override.build_attention(call)
    attended = attention(dense_attention, q, k, v, 2, transformer_options=options, **keywords)
    assert torch.equal(attended, dense_attention(q, k, v, 2))
    (fallback,) = override.run.stats.fallbacks
    assert reason in fallback
    assert received["_inside_attn_wrapper"]
    assert received["transformer_options"] is options
    assert received["attn_precision"] is torch.float32
    assert received["mask"] is change.get("mask")


def test_window_tolerates_float32_rounding() -> None:
    """ComfyUI computes the window's sigmas in float64 and the run's in float32."""
    sigma = float(SIGMAS[1]) * (1 - 1e-8)
    override = SparseOverride(FULL, (sigma, -math.inf))
    attention = override.build_attention(make_call(1))
    attention(dense_attention, *make_tensors(), 2, transformer_options=make_options())
    assert override.run.stats.calls["sparse"] == 1


def run_model(override: SparseOverride, step: int, options: dict, layers: int = 3) -> None:
    """Run one model call."""
    attention = override.build_attention(make_call(step, options, override.seen_calls))
    for layer in range(layers):
        attention(dense_attention, *make_tensors(seed=layer), 2, transformer_options=options)


def test_streams_share_no_state_and_a_new_run_starts_empty() -> None:
    override = SparseOverride(Profile(SVG2(refresh=4), EVERYWHERE))
    ids = [uuid.uuid4() for _ in range(2)]
    windows = [SimpleNamespace(index_list=part) for part in ([0, 1, 2], [3, 4, 5])]
    for step in range(2):
        for condition in ids:
            run_model(override, step, make_options((condition,)))
            for window in windows:
                run_model(override, step, make_options((condition,), context_window=window))
        # Another node's pass at the same sigma.
        run_model(override, step, make_options((ids[0],)), layers=2)
    assert len(override.run.states) == 2 * 3 * 3 + 2
    assert override.run.stats.plans["reused"] == override.run.stats.plans["made"] == 20
    # The sampler heunpp2 goes back to an earlier sigma. No state is lost.
    run_model(override, 0, make_options((ids[0],)), layers=1)
    assert len(override.run.states) == 20
    override.begin_run()
    assert not override.run.states
    assert not override.run.stats.calls


def test_steps_layers_and_branches_follow_the_profile() -> None:
    rule = Rule(branch="uncond", dense=True)
    schedule = Schedule(dense_steps=0.5, dense_layers=(0, -1), min_tokens=0, rules=(rule,))
    override = SparseOverride(Profile(SVG2(), schedule))
    override.num_layers = 3
    for step in range(4):
        run_model(override, step, make_options())
        run_model(override, step, make_options(cond_or_uncond=[1]))
    # Only the middle layer of the last two steps is sparse.
    assert override.run.stats.calls["sparse"] == 2
    assert override.run.stats.fallbacks["dense by schedule"] == 22


def test_refiner_before_the_blocks_is_not_a_layer() -> None:
    override = SparseOverride(FULL)
    attention = override.build_attention(make_call())
    for tokens in (7, TOKENS):
        tensors = make_tensors(tokens=tokens)
        attention(dense_attention, *tensors, 2, transformer_options=make_options())
    assert list(override.run.stats.layer_densities()) == ["layer 0"]


def test_report_gives_reasons_for_dense_calls() -> None:
    override = SparseOverride(FULL, (0.5, -math.inf))
    assert "no call was sparse; dense: none" in override.report()
    run_model(override, 0, make_options())
    assert "dense: outside the chosen part of the steps x3" in override.report()
    run_model(override, 3, make_options())
    assert "3 sparse calls of density 1.00" in override.report()


def explicit(q, k, v, heads: int, perturbed: tuple[int, ...], softness: float) -> Tensor:
    """Compute the formula with the whole attention map."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    identity = torch.eye(q.shape[2])
    for head in perturbed:
        weights[:, head] = (1 - softness) * weights[:, head] + softness * identity
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("softness", [0.3, 1.0])
@pytest.mark.parametrize("heads", [(0,), (0, 1)], ids=str)
def test_perturbed_layers_follow_the_formula(heads: tuple[int, ...], softness: float) -> None:
    override = PerturbedOverride({1: heads, 9: None}, PerturbedGuidance(softness=softness))
    attention = override.build_attention(make_call())

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(dense_attention, q, k, v, 2, transformer_options=make_options())

    # A refiner is not counted as a layer.
    attend(*make_tensors(tokens=7))
    for layer in range(3):
        q, k, v = make_tensors(seed=layer)
        expected = explicit(q, k, v, 2, heads if layer == 1 else (), softness)
        assert torch.allclose(attend(q, k, v), expected, atol=1e-5)
    assert attend(q, k[:, :5], v[:, :5]).shape == q.shape
    assert override.missing_layers() == [9]


@pytest.mark.parametrize("is_sorted", [False, True], ids=["in order", "sorted file"])
def test_layers_of_a_head_set_follow_the_order_of_execution(is_sorted) -> None:
    blocks = {"transformer_blocks": 2, "single_transformer_blocks": 3}
    blocks = dict(sorted(blocks.items())) if is_sorted else blocks
    block = ("single_transformer_blocks", 1)
    heads = HeadSet(ModelShape("FluxTransformer2DModel", blocks, 4, 16), {block: (0, 3)})
    assert resolve_layers(heads) == {3: (0, 3)}


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
def test_head_set_of_unknown_order_is_invalid(name, message) -> None:
    with pytest.raises(InvalidSettings, match=message):
        resolve_layers(HeadSet(ModelShape(name, {"a": 2, "b": 3}, 4, 16), {("b", 1): (0, 3)}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("13; 7:0,4; blocks.9:*", {13: None, 7: (0, 4), 9: None}),
        ("7:0; 7:4; 9:1; 9:*; 9:2", {7: (0, 4), 9: None}),
        ("0, 1, 2", {0: None, 1: None, 2: None}),
        ("0-2; 5", {0: None, 1: None, 2: None, 5: None}),
        ("0-1,4:3;", {0: (3,), 1: (3,), 4: (3,)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_notation_of_layers(text: str, expected: dict) -> None:
    assert resolve_layers(text) == expected


@pytest.mark.parametrize("text", ["middle", "", "3:", "2-0", "7:0-2", "-1", "1;;2", "99999"])
def test_other_notations_of_layers_are_invalid(text: str) -> None:
    with pytest.raises(InvalidSettings, match='layers are written like "13", "0, 1, 2", "0-2"'):
        resolve_layers(text)


def test_layers_and_heads_that_a_model_lacks() -> None:
    shape = ModelShape("X", {"blocks": 3}, 4, 16)
    assert resolve_layers(HeadSet(shape, {("blocks", 1): (0, 3)})) == {1: (0, 3)}
    with pytest.raises(InvalidSettings, match="no head 5: heads are 0 to 1"):
        PerturbedOverride({0: (5,)}, PerturbedGuidance()).build_attention(make_call())(
            dense_attention, *make_tensors(), 2, transformer_options=make_options()
        )


def fake_comfyui(layers: int) -> dict[str, Any]:
    """Return the modules of ComfyUI that an extra pass needs, for a model with some layers of 2 heads of 16."""

    def apply_model(
        x: Tensor, t: Tensor, concat: Any, text: Any, control: Any, options: dict
    ) -> Tensor:
        attention = options[OVERRIDE_KEY]
        for layer in range(layers):
            tensors = make_tensors(seed=layer)
            attention(dense_attention, *tensors, 2, transformer_options=options)
        return x

    def calc_cond_batch(
        model: Any, conds: Any, x: Tensor, sigma: Tensor, model_options: dict
    ) -> tuple:
        options = model_options["transformer_options"]
        (wrapper,) = options["wrappers"]["apply_model"]["dit_accel_perturbed"]
        return (wrapper(apply_model, x, sigma, transformer_options=options),)

    kinds = SimpleNamespace(APPLY_MODEL="apply_model")
    events = SimpleNamespace(ON_PRE_RUN="on_pre_run", ON_CLEANUP="on_cleanup")
    parts = {
        "comfy.samplers": SimpleNamespace(calc_cond_batch=calc_cond_batch),
        "comfy.patcher_extension": SimpleNamespace(WrappersMP=kinds, CallbacksMP=events),
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
        (({"blocks": 4}, 2, 16), "3 self-attentions over the image instead of 4"),
        (({"blocks": 2}, 2, 16), "3 self-attentions over the image instead of 2"),
    ],
    ids=str,
)
def test_head_set_of_another_model_is_invalid(shape, message, monkeypatch) -> None:
    for name, part in fake_comfyui(layers=3).items():
        monkeypatch.setitem(sys.modules, name, part)
    heads = HeadSet(ModelShape("FluxTransformer2DModel", *shape), {(next(iter(shape[0])), 0): (1,)})
    patcher, functions = Mock(), []
    patcher.clone.return_value.set_model_sampler_post_cfg_function = functions.append
    patcher.clone.return_value.get_attachment.return_value = None
    native_nodes.patch_guidance(patcher, 2.0, "0", 1.0, 0.0, 1.0, 0.0, heads)
    x = torch.randn(1, 4, 3, 8, 12)
    arguments = {"sigma": SIGMAS[:1], "input": x, "denoised": x, "cond_denoised": x}
    arguments["cond"] = [{"uuid": uuid.uuid4()}]
    sampling = SimpleNamespace(calculate_denoised=lambda sigma, output, x: x - sigma * output)
    model = Mock(model_sampling=sampling)
    arguments |= {"model": model, "model_options": {"transformer_options": make_options()}}
    if message is None:
        assert torch.equal(functions[0](arguments), x)
        return
    with pytest.raises(
        InvalidSettings, match=f"this head set belongs to another model: here {message}"
    ):
        functions[0](arguments)


def test_add_guidance_follows_the_formula_and_rescales() -> None:
    denoised, cond, perturbed = (torch.randn(2, 3, 5, 7) for _ in range(3))
    predictions = (denoised, cond, perturbed)
    assert torch.equal(add_guidance(*predictions, PerturbedGuidance(scale=0.0)), denoised)
    guided = add_guidance(*predictions, PerturbedGuidance(scale=2.0))
    assert torch.allclose(guided, denoised + 2 * (cond - perturbed))
    rescaled = add_guidance(*predictions, PerturbedGuidance(scale=2.0, rescale=1.0)) - denoised
    difference = 2 * (cond - perturbed)
    ratio = cond.std((1, 2, 3)) / (cond + difference).std((1, 2, 3))
    assert torch.allclose(rescaled, ratio[:, None, None, None] * difference, atol=1e-6)
