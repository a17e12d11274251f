"""In the real ComfyUI, with ``pytest --comfyui=DIR`` and its Python needs installed: native nodes on tiny random
models of its own classes.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dit_accel.comfyui import native_nodes
from dit_accel.comfyui.native_attention import KEY
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
            **{
                "image_model": "wan2.1",
                "model_type": "t2v",
                "dim": 32,
                "ffn_dim": 32,
                "freq_dim": 16,
            },
            **{"text_dim": 24, "num_heads": 2, "num_layers": 3, "in_dim": 16, "out_dim": 16},
        }
    )
    return model_of(comfy, config, torch.zeros(1, 16, 3, 8, 12), {}, (7, 24))


def flux(comfy: Any) -> SimpleNamespace:
    config = comfy.supported_models.Flux({"image_model": "flux", **FLUX, "in_channels": 16})
    given = {"pooled_output": torch.zeros(1, 12), "guidance": 3.5}
    return model_of(comfy, config, torch.zeros(1, 16, 16, 12), given, (7, 20))


def hunyuan(comfy: Any) -> SimpleNamespace:
    config = comfy.supported_models.HunyuanVideo(
        {
            **{"image_model": "hunyuan_video", **FLUX, "in_channels": 16, "out_channels": 16},
            **{"patch_size": [1, 2, 2], "theta": 256, "byt5": False, "meanflow": False},
        }
    )
    given = {"pooled_output": torch.zeros(1, 12), "guidance": 6.0}
    return model_of(comfy, config, torch.zeros(1, 16, 3, 8, 12), given, (7, 20))


FLUX = {
    **{
        "out_channels": 16,
        "vec_in_dim": 12,
        "context_in_dim": 20,
        "hidden_size": 32,
        "mlp_ratio": 2.0,
    },
    **{"num_heads": 2, "depth": 1, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000},
    **{"patch_size": 2, "qkv_bias": True, "guidance_embed": False},
}
FAMILIES = {"wan": wan, "flux": flux, "hunyuan": hunyuan}


def model_of(
    comfy: Any, config: Any, latent: torch.Tensor, given: dict, text: tuple[int, int]
) -> SimpleNamespace:
    """A patched model with random weights, and what to sample with it."""
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in base.diffusion_model.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(base, cpu, cpu)
    texts = [torch.randn(1, *text, generator=generator) for _ in range(2)]
    conditions = [[[t, dict(given)]] for t in texts]
    return SimpleNamespace(comfy=comfy, patcher=patcher, latent=latent, conditions=conditions)


@pytest.fixture(params=list(FAMILIES))
def model(request: pytest.FixtureRequest, comfy: Any) -> SimpleNamespace:
    return FAMILIES[request.param](comfy)


def sample(model: SimpleNamespace, patcher: Any, cfg: float = 3.0) -> torch.Tensor:
    """A latent from ComfyUI's own sampler."""
    noise = model.comfy.sample.prepare_noise(model.latent, SEED)
    return model.comfy.sample.sample(
        *(patcher, noise, STEPS, cfg, "euler", "simple", *model.conditions, model.latent),
        disable_pbar=True,
        seed=SEED,
    )


def attention(patcher: Any, method: str = "svg2", knobs: str = "top_p=1") -> Any:
    return native_nodes.attention(patcher, method, knobs, "full", 0.0, 1.0, 0, "")[0]


def state_of(patcher: Any) -> Any:
    """The override's object, out of the wrapper's closure."""
    (around,) = patcher.wrappers["apply_model"]["dit_accel"]
    found = [cell.cell_contents for cell in around.__closure__]
    return next(value for value in found if isinstance(value, SparseOverride))


def test_full_selection_is_the_unpatched_model_and_half_is_not(model) -> None:
    plain = sample(model, model.patcher)
    assert torch.isfinite(plain).all()
    full = attention(model.patcher)
    assert torch.allclose(sample(model, full), plain, atol=1e-5)
    assert state_of(full).run.stats.calls["sparse"] > 0
    half = sample(model, attention(model.patcher, "svg-ear", "density=0.3"))
    assert not torch.allclose(half, plain, atol=1e-4)
    assert torch.equal(sample(model, model.patcher), plain)  # the model without the node


def test_text_among_the_tokens_is_found_where_it_is(model, monkeypatch) -> None:
    for (
        condition
    ) in model.conditions:  # one word over and over: in the first layer its keys are equal
        condition[0][0] = condition[0][0][:, :1].expand(-1, 7, -1).clone()
    patched = attention(model.patcher, "neighborhood", "density=0.5")
    inner, layouts = state_of(patched), []
    compute = METHODS["neighborhood"].attend

    def watched(self: Any, call: Any, *more: Any) -> Any:
        if call.layer == 0:
            layouts.append((call.layout, call.key))
        return compute(self, call, *more)

    monkeypatch.setattr(METHODS["neighborhood"], "attend", watched)
    sample(model, patched)
    assert set(inner.run.stats.fallbacks) <= {
        "cross attention",
        "fewer tokens than the picture has",
    }
    for layout, key in layouts:
        assert layout.visual_tokens + layout.text_tokens == key.shape[1]
        if layout.text_tokens:
            text = key[:, :7] if layout.text_first else key[:, -7:]
            picture = key[:, 7:14] if layout.text_first else key[:, -14:-7]
            assert torch.allclose(text, text[:, :1].expand_as(text), atol=1e-5)
            assert not torch.allclose(picture, picture[:, :1].expand_as(picture), atol=1e-2)
    assert layouts


def test_conditions_that_run_apart_never_share_state_and_leave_none(model) -> None:
    longer = model.conditions[1][0]
    longer[0] = longer[0].repeat(1, 3, 1)  # too long for one batch
    patched = attention(model.patcher)
    inner, seen = state_of(patched), []
    reset = inner.reset

    def watched() -> None:
        seen.append({owner[0] for owner in inner.run.states})
        reset()

    inner.reset = watched
    found = sample(model, patched)
    assert max(map(len, seen)) == 2
    assert not inner.run.states
    assert torch.allclose(found, sample(model, model.patcher), atol=1e-5)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_chains_with_another_override_in_both_orders(model, first: str) -> None:
    calls = []

    def scaled(func: Any, *arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        return 1.1 * func(*arguments, **named)

    def theirs(patcher: Any) -> Any:
        changed = patcher.clone()
        changed.model_options["transformer_options"][KEY] = scaled
        return changed

    def ours(patcher: Any) -> Any:
        return attention(patcher, "svg2", "top_p=1; schedule.dense_layers=0")

    clean = ours(model.patcher)
    before = sample(model, clean)
    patched = theirs(clean) if first == "ours" else ours(theirs(model.patcher))
    found = [sample(model, patched) for _ in range(2)]
    assert torch.equal(*found)
    tally = state_of(patched).run.stats.calls
    assert len(calls) == 2 * tally["fallback"] > 0  # exactly what stays dense goes to the other
    assert tally["sparse"] > 0
    assert not torch.allclose(found[0], before, atol=1e-4)
    assert torch.equal(sample(model, clean), before)  # the clone without the other override
    plain = sample(model, model.patcher)
    assert torch.allclose(before, plain, atol=1e-5)


def test_two_of_our_nodes_the_later_one_decides_and_hands_on(model) -> None:
    first = attention(model.patcher, "svg-ear", "density=0.3")
    second = attention(first, "svg2", "top_p=1; schedule.dense_layers=0")
    sample(model, second)
    inner, outer = (
        next(
            c.cell_contents
            for c in around.__closure__
            if isinstance(c.cell_contents, SparseOverride)
        )
        for around in reversed(second.wrappers["apply_model"]["dit_accel"])
    )
    assert inner.run.stats.calls["sparse"] > 0
    assert outer.run.stats.calls["sparse"] > 0  # layer 0, counted as its own layer 0
    assert set(outer.run.stats.layer_densities()) == {"layer 0"}


def test_guidance_at_scale_zero_is_none_and_works_without_cfg(model) -> None:
    def guided(scale: float, softness: float = 1.0) -> Any:
        return native_nodes.guidance(model.patcher, scale, "1", softness, 0.0, 1.0, 0.0)[0]

    for cfg in (1.0, 3.0):
        plain = sample(model, model.patcher, cfg)
        assert torch.equal(sample(model, guided(0.0), cfg), plain)
        assert torch.equal(sample(model, guided(2.0, 0.0), cfg), plain)
        assert not torch.allclose(sample(model, guided(2.0), cfg), plain, atol=1e-4)
        assert torch.equal(sample(model, model.patcher, cfg), plain)


def test_guidance_on_sparse_attention_equals_guidance_on_full_selection(model) -> None:
    def guided(patcher: Any) -> Any:
        return native_nodes.guidance(patcher, 2.0, "1:0", 0.7, 0.0, 1.0, 0.5)[0]

    expected = sample(model, guided(model.patcher))
    assert torch.allclose(sample(model, guided(attention(model.patcher))), expected, atol=1e-4)


def test_a_layer_that_is_not_there_is_told(model, caplog) -> None:
    guided = native_nodes.guidance(model.patcher, 2.0, "0; 13", 1.0, 0.0, 1.0, 0.0)[0]
    sample(model, guided)
    assert "the model has no self-attention [13]" in caplog.text
    with pytest.raises(InvalidSettings, match="start must be below end"):
        native_nodes.guidance(model.patcher, 2.0, "0", 1.0, 0.5, 0.5, 0.0)


def test_an_error_inside_leaves_no_memory(model) -> None:
    patched = attention(model.patcher)
    inner = state_of(patched)

    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("planted")

    sparse, inner.sparse = inner.sparse, broken
    with pytest.raises(RuntimeError, match="planted"):
        sample(model, patched)
    assert not inner.run.states
    inner.sparse = sparse
    assert torch.allclose(sample(model, patched), sample(model, model.patcher), atol=1e-5)
