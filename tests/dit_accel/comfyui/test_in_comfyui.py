"""Native nodes on tiny random models of ComfyUI's own classes: ``pytest --comfyui=DIR``.

The environment needs ComfyUI's requirements.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.comfyui_models import FAMILIES, find_override, only_override, patch_attention, sample

from dit_accel.comfyui import guided_run, native_nodes
from dit_accel.comfyui.guided_run import GuidedRun
from dit_accel.comfyui.model_call import OVERRIDE_KEY
from dit_accel.comfyui.native_guidance import PerturbedOverride
from dit_accel.errors import InvalidSettings
from dit_accel.guidance import PerturbedGuidance
from dit_accel.methods import METHODS


@pytest.fixture(params=list(FAMILIES))
def model(request: pytest.FixtureRequest, comfy: Any) -> SimpleNamespace:
    return FAMILIES[request.param](comfy)


def test_full_selection_equals_the_unpatched_model(model) -> None:
    plain = sample(model, model.patcher)
    assert torch.isfinite(plain).all()
    full = patch_attention(model.patcher)
    assert torch.allclose(sample(model, full), plain, atol=1e-5)
    assert only_override(full).run.stats.calls["sparse"] > 0
    half = sample(model, patch_attention(model.patcher, "svg-ear", "density=0.3"))
    assert not torch.allclose(half, plain, atol=1e-4)
    assert torch.equal(sample(model, model.patcher), plain), "the patch changed the original model"


def test_text_tokens_are_where_the_layout_says(model, monkeypatch) -> None:
    # Conditions repeat one word, so its values are equal in the first layer.
    for condition in model.conditions:
        condition[0][0] = condition[0][0][:, :1].expand(-1, 7, -1).clone()
    patched = patch_attention(model.patcher, "neighborhood", "density=0.5")
    override, layouts = only_override(patched), []
    compute = METHODS["neighborhood"].attend

    def attend(self: Any, call: Any, *arguments: Any) -> Any:
        if call.context.layer == 0:
            layouts.append((call.layout, call.value))
        return compute(self, call, *arguments)

    monkeypatch.setattr(METHODS["neighborhood"], "attend", attend)
    sample(model, patched)
    assert set(override.run.stats.fallbacks) <= {
        "cross attention",
        "fewer tokens than the image has",
        "attention over another stream than the image",
    }
    for layout, value in layouts:
        assert layout.visual_tokens + layout.text_tokens == value.shape[1]
        if layout.text_tokens:
            text = value[:, :7] if layout.text_first else value[:, -7:]
            image = value[:, 7:14] if layout.text_first else value[:, -14:-7]
            assert torch.allclose(text, text[:, :1].expand_as(text), atol=1e-5)
            assert not torch.allclose(image, image[:, :1].expand_as(image), atol=1e-2)
    assert layouts


def test_conditions_in_separate_calls_share_no_state(model) -> None:
    # Conditions of different lengths do not fit one batch.
    longer = model.conditions[1][0]
    longer[0] = longer[0].repeat(1, 3, 1)
    patched = patch_attention(model.patcher)
    override, streams = only_override(patched), []
    free_state = override.free_state

    def watch_state() -> None:
        streams.append({owner[0] for owner in override.run.states})
        free_state()

    override.free_state = watch_state
    latent = sample(model, patched)
    assert max(map(len, streams)) == 2
    assert not override.run.states
    assert torch.allclose(latent, sample(model, model.patcher), atol=1e-5)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_works_with_another_override_in_both_orders(model, first: str) -> None:
    calls = []

    def scaled(func: Any, *arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        return 1.1 * func(*arguments, **named)

    def theirs(patcher: Any) -> Any:
        changed = patcher.clone()
        changed.model_options["transformer_options"][OVERRIDE_KEY] = scaled
        return changed

    def ours(patcher: Any) -> Any:
        return patch_attention(patcher, "svg2", "top_p=1; schedule.dense_layers=0")

    clean = ours(model.patcher)
    before = sample(model, clean)
    patched = theirs(clean) if first == "ours" else ours(theirs(model.patcher))
    latents = [sample(model, patched) for _ in range(2)]
    assert torch.equal(*latents)
    counts = only_override(patched).run.stats.calls
    # The other override gets exactly the calls that stay dense.
    assert len(calls) == 2 * counts["fallback"] > 0
    assert counts["sparse"] > 0
    assert not torch.allclose(latents[0], before, atol=1e-4)
    assert torch.equal(sample(model, clean), before), "the other override changed the clone"
    plain = sample(model, model.patcher)
    assert torch.allclose(before, plain, atol=1e-5)


def test_second_of_two_nodes_passes_dense_calls_to_the_first(model) -> None:
    first = patch_attention(model.patcher, "svg-ear", "density=0.3")
    second = patch_attention(first, "svg2", "top_p=1; schedule.dense_layers=0")
    sample(model, second)
    wrappers = second.wrappers["apply_model"]["dit_accel"]
    inner, outer = map(find_override, reversed(wrappers))
    assert inner.run.stats.calls["sparse"] > 0
    # Only layer 0 reaches the first node's override.
    assert outer.run.stats.calls["sparse"] > 0
    assert set(outer.run.stats.layer_densities()) == {"layer 0"}


def test_guidance_with_and_without_cfg(model) -> None:
    def guided(scale: float, softness: float = 1.0) -> Any:
        return native_nodes.patch_guidance(model.patcher, scale, "1", softness, 0.0, 1.0, 0.0)[0]

    for cfg in (1.0, 3.0):
        plain = sample(model, model.patcher, cfg)
        assert torch.equal(sample(model, guided(0.0), cfg), plain)
        assert torch.equal(sample(model, guided(2.0, 0.0), cfg), plain)
        assert not torch.allclose(sample(model, guided(2.0), cfg), plain, atol=1e-4)
        assert torch.equal(sample(model, model.patcher, cfg), plain)


def test_guidance_with_full_selection_equals_guidance_alone(model) -> None:
    def guided(patcher: Any) -> Any:
        return native_nodes.patch_guidance(patcher, 2.0, "1:0", 0.7, 0.0, 1.0, 0.5)[0]

    expected = sample(model, guided(model.patcher))
    assert torch.allclose(
        sample(model, guided(patch_attention(model.patcher))), expected, atol=1e-4
    )


def test_missing_layers_warn_once_and_cost_one_pass(model, caplog, monkeypatch) -> None:
    passes, predict = [], guided_run.predict_perturbed

    def count(*arguments: Any) -> torch.Tensor:
        passes.append(1)
        return predict(*arguments)

    monkeypatch.setattr(guided_run, "predict_perturbed", count)
    plain = sample(model, model.patcher)
    guided = native_nodes.patch_guidance(model.patcher, 2.0, "13", 1.0, 0.0, 1.0, 0.0)[0]
    assert torch.equal(sample(model, guided), plain)
    assert len(passes) == 1
    guided = native_nodes.patch_guidance(model.patcher, 2.0, "0; 13", 1.0, 0.0, 1.0, 0.0)[0]
    assert not torch.allclose(sample(model, guided), plain, atol=1e-4)
    assert len(passes) == 1 + 2
    assert caplog.text.count("the model has no self-attention [13]") == 2
    with pytest.raises(InvalidSettings, match="start must be below end"):
        native_nodes.patch_guidance(model.patcher, 2.0, "0", 1.0, 0.5, 0.5, 0.0)


@pytest.mark.parametrize("order", ["cache first", "guidance first"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_guidance_beside_easycache(model, cfg: float, order: str, monkeypatch) -> None:
    """Guidance equals guidance without the cache on computed steps, and keeps its difference on skipped ones."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    def cached(patcher: Any) -> Any:
        return EasyCacheNode.execute(patcher, 3.0, 0.3, 0.9, False).args[0]

    def guided(patcher: Any) -> Any:
        return native_nodes.patch_guidance(patcher, 2.0, "1", 1.0, 0.0, 1.0, 0.0)[0]

    steps, guide, predict = [], GuidedRun.guide, guided_run.predict_perturbed
    passes = []

    def expect(arguments: dict) -> torch.Tensor:
        """Return the difference from a clean and a perturbed call without any wrapper."""
        options = dict(arguments["model_options"]["transformer_options"])
        options = {k: v for k, v in options.items() if k not in ("wrappers", "easycache")}
        bare = {**arguments, "model_options": {"transformer_options": options}}
        settings = PerturbedGuidance(scale=2.0)
        clean, perturbed = (
            predict(bare, arguments["cond"], PerturbedOverride(layers, settings))
            for layers in ({}, {1: None})
        )
        return clean - perturbed

    def watch(self: Any, arguments: dict, reached: dict) -> torch.Tensor:
        cache = arguments["model_options"]["transformer_options"]["easycache"]
        skipped, before = cache.skip_current_step, len(passes)
        result = guide(self, arguments, reached)
        difference = None if skipped else expect(arguments)
        term = (result - arguments["denoised"]) / 2.0
        steps.append((skipped, len(passes) - before, float(arguments["sigma"]), term, difference))
        return result

    def count(*arguments: Any) -> torch.Tensor:
        passes.append(1)
        return predict(*arguments)

    monkeypatch.setattr(GuidedRun, "guide", watch)
    monkeypatch.setattr(guided_run, "predict_perturbed", count)
    chain = (cached, guided) if order == "cache first" else (guided, cached)
    sample(model, chain[1](chain[0](model.patcher)), cfg, steps=8)
    assert {skipped for skipped, *_ in steps} == {False, True}
    last = torch.zeros(()), 1.0
    for skipped, extra, sigma, term, difference in steps:
        assert extra == (not skipped)
        if skipped:
            difference = last[0] * (sigma / last[1])
        else:
            last = difference, sigma
        assert difference.abs().max() > 1e-4
        assert torch.allclose(term, difference, atol=1e-2 * float(difference.abs().max()))


def test_error_in_a_run_frees_the_state(model) -> None:
    patched = patch_attention(model.patcher)
    override = only_override(patched)

    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("planted")

    sparse, override.sparse = override.sparse, broken
    with pytest.raises(RuntimeError, match="planted"):
        sample(model, patched)
    assert not override.run.states
    override.sparse = sparse
    assert torch.allclose(sample(model, patched), sample(model, model.patcher), atol=1e-5)


def test_guidance_perturbs_the_image_and_leaves_the_text_clean(model, monkeypatch) -> None:
    for condition in model.conditions:
        condition[0][0] = condition[0][0][:, :1].expand(-1, 7, -1).clone()
    found, perturb = [], PerturbedOverride.perturb

    def watch(self: Any, clean: torch.Tensor, call: Any, model_call: Any) -> torch.Tensor:
        perturbed = perturb(self, clean, call, model_call)
        found.append((clean, perturbed, call.split_inputs()[2]))
        return perturbed

    monkeypatch.setattr(PerturbedOverride, "perturb", watch)
    guided = native_nodes.patch_guidance(model.patcher, 2.0, "0", 1.0, 0.0, 1.0, 0.0)[0]
    sample(model, guided)
    assert found
    for clean, perturbed, value in found:
        is_clean = (clean == perturbed).all((0, 2, 3))
        # The same word has the same values everywhere, and no two image tokens have.
        rows = value[0].flatten(1)
        is_text = (rows[:, None] - rows).abs().amax(-1).lt(1e-5).sum(1) >= 7
        assert not is_clean.all()
        assert is_clean[is_text].all()
        # Only MiniMax-H3 has other tokens outside the grid: those of its sound.
        sound = 22 if value.shape[1] == 7 + 22 + 72 else 0
        assert int(is_clean.sum()) == int(is_text.sum()) + sound
