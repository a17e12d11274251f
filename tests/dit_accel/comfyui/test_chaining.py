"""The native nodes beside ComfyUI's own nodes, in both orders: ``pytest --comfyui=DIR``."""

import importlib
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.comfyui_models import (
    FAMILIES,
    find_override,
    patch_attention,
    patch_guidance,
    sample,
)

from dit_accel.comfyui.model_call import OVERRIDE_KEY

Patch = Callable[[Any], Any]


def core_node(module: str, name: str) -> Any:
    """Return a class of ComfyUI's extra nodes. The test is skipped if this ComfyUI is older than it."""
    try:
        return getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    except (ImportError, AttributeError):
        pytest.skip(f"this ComfyUI has no {name}")


def easy_cache(patcher: Any) -> Any:
    node = core_node("nodes_easycache", "EasyCacheNode")
    return node.execute(patcher, 3.0, 0.3, 0.9, False).args[0]


def lazy_cache(patcher: Any) -> Any:
    node = core_node("nodes_easycache", "LazyCacheNode")
    return node.execute(patcher, 3.0, 0.3, 0.9, False).args[0]


def skip_layers(patcher: Any) -> Any:
    node = core_node("nodes_slg", "SkipLayerGuidanceDiT")
    return node.execute(patcher, 3.0, 0.0, 1.0, "0", "0").args[0]


def perturbed_attention(patcher: Any) -> Any:
    """Return a model with core's PAG, which acts on UNets only."""
    return core_node("nodes_pag", "PerturbedAttentionGuidance").execute(patcher, 3.0).args[0]


def normalized_attention(patcher: Any) -> Any:
    return core_node("nodes_nag", "NAGuidance").execute(patcher, 5.0, 0.5, 1.5).args[0]


def context_windows(patcher: Any) -> Any:
    """Return a model that sees two of three frames at a time."""
    node = core_node("nodes_context_windows", "ContextWindowsManualNode")
    values = {
        "context_length": 2,
        "context_overlap": 1,
        "context_schedule": "standard_static",
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "dim": 2,
        "freenoise": False,
    }
    known = inspect.signature(node.execute).parameters
    values = {key: value for key, value in values.items() if key in known}
    result = node.execute(patcher, **values)
    return getattr(result, "args", [result])[0]


def compiled(patcher: Any) -> Any:
    # The backend "eager" traces the same graphs, and needs no C++.
    return core_node("nodes_torch_compile", "TorchCompileModel").execute(patcher, "eager").args[0]


def attention_backend(patcher: Any) -> Any:
    node = core_node("nodes_model_advanced", "ModelAttentionBackend")
    return node().patch(patcher, "pytorch attention")[0]


def core_sparse(patcher: Any) -> Any:
    """Return a model with an override that puts itself on top in each step, as newer versions of ComfyUI have one."""
    from comfy.patcher_extension import CallbacksMP

    changed = patcher.clone()

    def scaled(func: Any, q: Any, k: Any, *arguments: Any, **named: Any) -> torch.Tensor:
        scale = 1.1 if q.shape == k.shape else 1.0
        return scale * func(q, k, *arguments, **named)

    if "model_options" not in inspect.signature(patcher.prepare_state).parameters:
        pytest.skip("this ComfyUI gives the callback no options to change")

    def put_on_top(patcher: Any, _: Any, model_options: dict) -> None:
        model_options["transformer_options"][OVERRIDE_KEY] = scaled

    changed.add_callback(CallbacksMP.ON_PREPARE_STATE, put_on_top)
    return changed


NODES: dict[str, tuple[Patch, str]] = {
    "easycache": (easy_cache, "wan"),
    "easycache flux": (easy_cache, "flux"),
    "lazycache": (lazy_cache, "wan"),
    "slg": (skip_layers, "flux"),
    "pag": (perturbed_attention, "flux"),
    "nag": (normalized_attention, "flux"),
    "context windows": (context_windows, "wan"),
    "torch.compile": (compiled, "flux"),
    "attention backend": (attention_backend, "wan"),
    "core sparse": (core_sparse, "wan"),
}
IDLE = {"pag", "torch.compile", "attention backend"}
"""Nodes that do not change the picture."""


@pytest.fixture(params=list(NODES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str, comfy: Any) -> SimpleNamespace:
    return FAMILIES[NODES[name][1]](comfy)


def chain(patcher: Any, theirs: Patch, ours: Patch) -> dict[str, Any]:
    return {"theirs first": ours(theirs(patcher)), "ours first": theirs(ours(patcher))}


def test_sparse_attention_in_both_orders(name, model) -> None:
    theirs = NODES[name][0]
    plain = sample(model, model.patcher, steps=6)
    alone = sample(model, theirs(model.patcher), steps=6)
    assert torch.allclose(alone, plain, atol=1e-5) == (name in IDLE)
    # Ours computes all calls that another sparse attention would compute.
    expected = plain if name == "core sparse" else alone
    full = chain(model.patcher, theirs, patch_attention)
    for order, patched in full.items():
        for attempt in range(2):
            latent = sample(model, patched, steps=6)
            assert torch.allclose(latent, expected, atol=1e-4), (order, attempt)
    half = chain(model.patcher, theirs, lambda p: patch_attention(p, "neighborhood", "density=0.5"))
    latents = [sample(model, patched, steps=6) for patched in half.values()]
    assert torch.allclose(*latents, atol=1e-4)
    assert not torch.allclose(latents[0], alone, atol=1e-4)
    for patched in half.values():
        (wrapper,) = patched.wrappers["apply_model"]["dit_accel"]
        assert find_override(wrapper).run.stats.calls["sparse"] > 0
    assert torch.equal(sample(model, model.patcher, steps=6), plain)


def test_guidance_in_both_orders(name, model) -> None:
    theirs = NODES[name][0]
    alone = sample(model, theirs(model.patcher), steps=6)
    latents = [
        sample(model, patched, steps=6)
        for patched in chain(model.patcher, theirs, patch_guidance).values()
    ]
    assert not torch.allclose(latents[0], alone, atol=1e-4)
    assert torch.allclose(*latents, atol=1e-3)
