"""Native nodes on tiny random models of ComfyUI's own classes: ``pytest --comfyui=DIR``.

The environment needs ComfyUI's requirements.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dit_accel.comfyui import native_nodes
from dit_accel.comfyui.model_call import OVERRIDE_KEY
from dit_accel.comfyui.sparse_override import SparseOverride
from dit_accel.errors import InvalidSettings
from dit_accel.methods import METHODS

STEPS, SEED = 2, 1


@pytest.fixture(scope="module")
def comfy(request: pytest.FixtureRequest) -> Any:
    """ComfyUI's modules, on the CPU."""
    folder: Path | None = request.config.getoption("--comfyui")
    if folder is None:
        pytest.skip("needs a ComfyUI: pytest --comfyui=DIR")
    sys.path.insert(0, str(folder))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.model_patcher
    import comfy.sample
    import comfy.supported_models

    yield comfy
    sys.path.remove(str(folder))


def wan(comfy: Any) -> SimpleNamespace:
    config = comfy.supported_models.WAN21_T2V(
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 32,
            "ffn_dim": 32,
            "freq_dim": 16,
            "text_dim": 24,
            "num_heads": 2,
            "num_layers": 3,
            "in_dim": 16,
            "out_dim": 16,
        }
    )
    return build_model(comfy, config, torch.zeros(1, 16, 3, 8, 12), {}, (7, 24))


def flux(comfy: Any) -> SimpleNamespace:
    config = comfy.supported_models.Flux({"image_model": "flux", **FLUX, "in_channels": 16})
    condition = {"pooled_output": torch.zeros(1, 12), "guidance": 3.5}
    return build_model(comfy, config, torch.zeros(1, 16, 16, 12), condition, (7, 20))


def hunyuan(comfy: Any) -> SimpleNamespace:
    config = comfy.supported_models.HunyuanVideo(
        {
            **FLUX,
            "image_model": "hunyuan_video",
            "in_channels": 16,
            "patch_size": [1, 2, 2],
            "theta": 256,
            "byt5": False,
            "meanflow": False,
        }
    )
    condition = {"pooled_output": torch.zeros(1, 12), "guidance": 6.0}
    return build_model(comfy, config, torch.zeros(1, 16, 3, 8, 12), condition, (7, 20))


FLUX = {
    "out_channels": 16,
    "vec_in_dim": 12,
    "context_in_dim": 20,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
}
FAMILIES = {"wan": wan, "flux": flux, "hunyuan": hunyuan}


def build_model(
    comfy: Any, config: Any, latent: torch.Tensor, condition: dict, text: tuple[int, int]
) -> SimpleNamespace:
    """Return a model with random weights, and its inputs for sampling."""
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in base.diffusion_model.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(base, cpu, cpu)
    texts = [torch.randn(1, *text, generator=generator) for _ in range(2)]
    conditions = [[[t, dict(condition)]] for t in texts]
    return SimpleNamespace(comfy=comfy, patcher=patcher, latent=latent, conditions=conditions)


@pytest.fixture(params=list(FAMILIES))
def model(request: pytest.FixtureRequest, comfy: Any) -> SimpleNamespace:
    return FAMILIES[request.param](comfy)


def sample(model: SimpleNamespace, patcher: Any, cfg: float = 3.0) -> torch.Tensor:
    """Sample a latent with ComfyUI's own sampler."""
    noise = model.comfy.sample.prepare_noise(model.latent, SEED)
    return model.comfy.sample.sample(
        *(patcher, noise, STEPS, cfg, "euler", "simple", *model.conditions, model.latent),
        disable_pbar=True,
        seed=SEED,
    )


def patch_attention(patcher: Any, method: str = "svg2", knobs: str = "top_p=1") -> Any:
    return native_nodes.patch_attention(patcher, method, knobs, "full", 0.0, 1.0, 0, "")[0]


def find_override(wrapper: Any) -> SparseOverride:
    """Return the override of a wrapper, from its closure."""
    values = [cell.cell_contents for cell in wrapper.__closure__]
    owners = [getattr(value, "__self__", None) for value in values]
    return next(owner for owner in owners if isinstance(owner, SparseOverride))


def only_override(patcher: Any) -> SparseOverride:
    """Return the override of a patched model."""
    (wrapper,) = patcher.wrappers["apply_model"]["dit_accel"]
    return find_override(wrapper)


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
    # Conditions repeat one word, so its keys are equal in the first layer.
    for condition in model.conditions:
        condition[0][0] = condition[0][0][:, :1].expand(-1, 7, -1).clone()
    patched = patch_attention(model.patcher, "neighborhood", "density=0.5")
    override, layouts = only_override(patched), []
    compute = METHODS["neighborhood"].attend

    def attend(self: Any, call: Any, *arguments: Any) -> Any:
        if call.context.layer == 0:
            layouts.append((call.layout, call.key))
        return compute(self, call, *arguments)

    monkeypatch.setattr(METHODS["neighborhood"], "attend", attend)
    sample(model, patched)
    assert set(override.run.stats.fallbacks) <= {
        "cross attention",
        "fewer tokens than the image has",
    }
    for layout, key in layouts:
        assert layout.visual_tokens + layout.text_tokens == key.shape[1]
        if layout.text_tokens:
            text = key[:, :7] if layout.text_first else key[:, -7:]
            image = key[:, 7:14] if layout.text_first else key[:, -14:-7]
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


def test_warning_about_a_missing_layer(model, caplog) -> None:
    guided = native_nodes.patch_guidance(model.patcher, 2.0, "0; 13", 1.0, 0.0, 1.0, 0.0)[0]
    sample(model, guided)
    assert "the model has no self-attention [13]" in caplog.text
    with pytest.raises(InvalidSettings, match="start must be below end"):
        native_nodes.patch_guidance(model.patcher, 2.0, "0", 1.0, 0.5, 0.5, 0.0)


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
