"""Guidance on Sana, whose attention is linear, and the refusal of everything that needs an attention map."""

import copy
import json

import pytest
import torch
from click.testing import CliRunner
from diffusers import SanaPAGPipeline, SanaPipeline, SanaTransformer2DModel
from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0
from support.tiny_components import NO_ENCODER, WIDTH, flow, ready
from support.tiny_pipelines import TinyPipeline, numbered, prompts

import dit_accel
from dit_accel import InvalidSettings, UnknownFamily, UnsupportedProcessor
from dit_accel.cli import cli
from dit_accel.hooks.families import find_family
from dit_accel_pipelines import families


def sana_parts(layers: int = 3):
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        num_attention_heads=3,
        attention_head_dim=8,
        num_cross_attention_heads=3,
        cross_attention_head_dim=8,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        sample_size=8,
    )
    return {"transformer": transformer, "vae": None, "scheduler": flow(), **NO_ENCODER}


def call(cfg: bool):
    # Without a VAE, a token covers 32 x 32 pixels.
    size = {"height": 128, "width": 256, "use_resolution_binning": False}
    negative = {"negative_prompt": None} if cfg else {}
    arguments = {"guidance_scale": 4.0 if cfg else 1.0, **size, **negative}
    return {**arguments, **prompts(cfg, masks=True)}


SANA = TinyPipeline(
    lambda: ready(SanaPipeline(**sana_parts())), call, numbered("transformer_blocks", 3)
)
CFG = pytest.mark.parametrize("cfg", [False, True], ids=["no cfg", "cfg"])


@pytest.fixture
def pipe():
    return SANA.build()


@CFG
@pytest.mark.parametrize("adaptive", [0.0, 0.004])
def test_equals_diffusers_pag(pipe, cfg: bool, adaptive: float) -> None:
    layers = {"pag_applied_layers": r"transformer_blocks\.1\."}
    theirs = ready(SanaPAGPipeline(**sana_parts(), **layers))
    # Without a VAE, a token of that pipeline covers 8 x 8 pixels.
    arguments = {"height": 32, "width": 64, "pag_scale": 3.0, "pag_adaptive_scale": adaptive}
    expected = SANA.run(theirs, cfg, **arguments)
    plain = SANA.run(pipe, cfg)
    with pipe.enable_perturbed_guidance(3.0, heads="transformer_blocks.1", adaptive=adaptive):
        guided = SANA.run(pipe, cfg)
    assert (guided - plain).abs().max() > 1e-2
    torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)


class ExplicitLinear:
    """Linear attention by its formula, ``relu(Q) relu(K)^T V`` with normalized rows, mixed with the values."""

    def __init__(self, heads: list[int], softness: float) -> None:
        self.heads, self.softness = heads, softness

    def __call__(self, attn, hidden_states, **kwargs):
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        weights = query.relu() @ key.relu().transpose(-1, -2)
        out = weights / weights.sum(-1, keepdim=True) @ value
        chosen = self.heads
        out[:, chosen] = (1 - self.softness) * out[:, chosen] + self.softness * value[:, chosen]
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("softness", [0.3, 1.0])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_single_heads_and_softness_follow_the_formula(pipe, softness, share_prefix) -> None:
    transformer = pipe.transformer
    generator = torch.Generator().manual_seed(1)
    arguments = {
        "hidden_states": torch.randn(2, 4, 4, 6, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, WIDTH, generator=generator),
        "timestep": torch.tensor([500.0, 500.0]),
    }
    block = transformer.transformer_blocks[2].attn1
    with torch.no_grad():
        clean = transformer(**arguments)[0]
        original = block.processor
        block.processor = ExplicitLinear([0, 2], softness)
        perturbed = transformer(**arguments)[0]
        block.processor = original
        settings = {"softness": softness, "share_prefix": share_prefix}
        with dit_accel.enable_perturbed_guidance(
            transformer, 2.0, heads="transformer_blocks.2:0,2", **settings
        ):
            guided = transformer(**arguments)[0]
    expected = clean + 2.0 * (clean - perturbed)
    assert (expected - clean).abs().max() > 1e-3
    torch.testing.assert_close(guided, expected, atol=1e-5, rtol=1e-5)


@CFG
def test_disabling_restores_every_bit(pipe, cfg: bool) -> None:
    modules = [block.attn1 for block in pipe.transformer.transformer_blocks]
    processors = [module.processor for module in modules]
    plain = SANA.run(pipe, cfg)
    with pipe.enable_perturbed_guidance(2.0, softness=0.0):
        assert torch.equal(SANA.run(pipe, cfg), plain)
    with pipe.enable_perturbed_guidance(2.0, layers="0"):
        assert not torch.equal(SANA.run(pipe, cfg), plain)
        assert pipe.attention_report().calls["fallback"] == 0
        copied = copy.deepcopy(modules[0])
        assert isinstance(copied.processor, SanaLinearAttnProcessor2_0)
    assert all(m.processor is p for m, p in zip(modules, processors, strict=True))
    assert torch.equal(SANA.run(pipe, cfg), plain)


def test_published_heads_of_sana() -> None:
    pipe = ready(SanaPipeline(**sana_parts(layers=20)))
    with pipe.enable_perturbed_guidance(heads="pag:published"):
        assert SANA.run(pipe, True, num_inference_steps=1).isfinite().all()
        report = pipe.attention_report().guidance
    assert (report["heads"], report["scale"]) == ("transformer_blocks.8:*", 3.0)


def test_what_needs_a_map_is_refused(pipe) -> None:
    for enable in (pipe.enable_sparse_attention, pipe.enable_quantized_attention):
        with pytest.raises(UnknownFamily, match="linear, so there is no attention map"):
            enable()
        with (
            pipe.enable_perturbed_guidance(2.0),
            pytest.raises(UnknownFamily, match="perturbed guidance works"),
        ):
            enable()
    for settings in (
        {"perturbation": "mean-query"},
        {"perturbation": "uniform"},
        {"interpolation": "slerp", "text_mode": "joint"},
    ):
        with pytest.raises(InvalidSettings, match="sana has linear attention without a map") as e:
            pipe.enable_perturbed_guidance(2.0, **settings)
        assert "\n" not in str(e.value)
    with pytest.raises(UnknownFamily):
        find_family(pipe.transformer)
    assert "sana" not in {family.name for family in families()}
    assert not hasattr(pipe.transformer, "_diffusers_hook")


def test_another_processor_is_refused(pipe) -> None:
    pipe.transformer.transformer_blocks[1].attn1.processor = ExplicitLinear([], 1.0)
    with pytest.raises(UnsupportedProcessor, match="ExplicitLinear is not one of the processors"):
        pipe.enable_perturbed_guidance(2.0)
    assert not hasattr(pipe.transformer, "_diffusers_hook")


def test_the_command_line_lists_what_works() -> None:
    result = CliRunner().invoke(cli, ["models"], catch_exceptions=False)
    assert "SanaTransformer2DModel is refused: its self-attention is linear" in result.output
    result = CliRunner().invoke(cli, ["models", "sana", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    row = json.loads(result.output)
    assert row["perturbed_guidance"]
    assert [heads["name"] for heads in row["heads"]] == ["pag:published"]
