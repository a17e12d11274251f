"""The report remarks on pipelines that change the guided prediction."""

from contextlib import nullcontext
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from diffusers.modular_pipelines import BlockState
from support.tiny_pipelines import TINY, embeds

import dit_accel
from dit_accel.guidance.perturbed_branch import SEVERAL_GUIDED
from dit_accel.guidance.pipeline_checks import describe_deviations
from dit_accel_pipelines import families, find_family

NORM = "the pipeline scales the guided prediction to the norm of the conditional one"


LATENTS = torch.randn(1, 8, 2, 4, 4, generator=torch.Generator().manual_seed(3))


class Pipe:
    """A pipeline whose call has the arguments of `call`."""

    guider = None

    def __init__(self, **config):
        self.config = config

    def call(self, family, normalize=None, enable_cfg_renorm=None, clip_value=None):
        return list(describe_deviations(self, family))


def family(name):
    return next(family for family in families() if family.name == name)


def test_remark_on_guidance_rescale() -> None:
    tiny = TINY["ltx"]
    pipe = tiny.build()
    with pipe.enable_perturbed_guidance(2.0, heads=tiny.blocks[1]):
        tiny.run(pipe, True, guidance_rescale=0.5)
        assert any("guidance_rescale" in line for line in pipe.attention_report().remarks)
        assert "guidance 2 in 3 forwards" in str(pipe.attention_report())
        tiny.run(pipe, False, guidance_rescale=0.5)
        assert not pipe.attention_report().remarks
        tiny.run(pipe, True)
        assert not pipe.attention_report().remarks


@pytest.fixture
def qwen_image():
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = diffusers.QwenImagePipeline(scheduler, vae, None, None, transformer.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("cfg", [False, True], ids=["no cfg", "cfg"])
def test_remark_on_the_norm_of_qwen_image(qwen_image, cfg) -> None:
    mask = torch.ones(1, 5, dtype=torch.bool)
    arguments = {"prompt_embeds": embeds(1), "prompt_embeds_mask": mask}
    if cfg:
        arguments |= {"negative_prompt_embeds": embeds(2), "negative_prompt_embeds_mask": mask}
    size = {"height": 32, "width": 48, "num_inference_steps": 1, "output_type": "latent"}
    with qwen_image.enable_perturbed_guidance(2.0, heads="transformer_blocks.1"):
        qwen_image(**arguments, **size, true_cfg_scale=4.0)
        remarks = qwen_image.attention_report().remarks
    assert remarks == ([NORM + ", which also changes what perturbed guidance adds"] if cfg else [])


def test_remark_only_if_the_call_or_config_switches_it_on() -> None:
    longcat, bria = family("longcat-image"), family("bria")
    assert len(Pipe().call(longcat)) == len(Pipe().call(longcat, enable_cfg_renorm=True)) == 1
    assert not Pipe().call(longcat, enable_cfg_renorm=False)
    assert not Pipe().call(bria)
    assert "standard deviation" in Pipe().call(bria, normalize=True)[0]
    assert "clips" in Pipe().call(bria, clip_value=3.0)[0]
    assert len(Pipe(is_cfg_zero_star=True).call(family("helios"))) == 1
    assert not Pipe().call(family("helios"))
    for name in ("joyimage-edit", "joyimage-edit-plus", "qwen-image"):
        assert Pipe().call(family(name))[0].startswith(NORM)


@pytest.mark.parametrize("named", [False, True], ids=["without contexts", "with contexts"])
def test_loop_of_the_users_own(named) -> None:
    transformer = TINY["wan"].build().transformer
    timestep = torch.tensor([500.0])

    def predict(seed, name):
        with transformer.cache_context(name) if named else nullcontext():
            return transformer(LATENTS, timestep, embeds(seed), return_dict=False)[0]

    with torch.no_grad():
        cond, uncond = predict(1, "cond"), predict(2, "uncond")
        with dit_accel.enable_perturbed_guidance(transformer, 2.0, heads="blocks.1"):
            guided, other = predict(1, "cond"), predict(2, "uncond")
            report = dit_accel.attention_report(transformer)
    combined = other + 4.0 * (guided - other)
    formula = uncond + 4.0 * (cond - uncond) + guided - cond
    assert (guided - cond).abs().max() > 1e-3
    assert torch.allclose(combined, formula, atol=1e-4) == named
    assert report.remarks == ([] if named else [SEVERAL_GUIDED])
    assert report.guidance["forwards"] == (1 if named else 2)


@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_guider_of_a_modular_pipeline_names_the_predictions(rescale) -> None:
    denoise = pytest.importorskip("diffusers.modular_pipelines.wan.denoise")
    transformer = TINY["wan"].build().transformer
    guider = ClassifierFreeGuidance(guidance_scale=4.0, guidance_rescale=rescale)
    components = SimpleNamespace(guider=guider, transformer=transformer)

    def predict():
        state = BlockState(
            num_inference_steps=2,
            prompt_embeds=embeds(1),
            negative_prompt_embeds=embeds(2),
            latent_model_input=LATENTS,
            attention_kwargs=None,
            dtype=torch.float32,
        )
        with torch.no_grad():
            return denoise.WanLoopDenoiser()(components, state, 0, torch.tensor(500.0))[
                1
            ].noise_pred

    plain = predict()
    with dit_accel.enable_perturbed_guidance(transformer, 2.0, heads="blocks.1"):
        guided = predict()
        report = dit_accel.attention_report(transformer)
        with torch.no_grad(), transformer.cache_context("cond"):
            arguments = (LATENTS, torch.tensor([500.0]), embeds(1))
            difference = transformer(*arguments, return_dict=False)[0]
    with torch.no_grad():
        difference = difference - transformer(*arguments, return_dict=False)[0]
    assert report.guidance["forwards"] == 1
    assert torch.allclose(guided, plain + difference, atol=1e-4) == (not rescale)
    expected = ["the pipeline's ClassifierFreeGuidance combines"] if rescale else []
    assert [remark[: len(expected[0])] for remark in report.remarks] == expected


def test_remark_on_another_guider() -> None:
    wan, pipe = find_family("WanTransformer3DModel"), Pipe()
    pipe.guider = ClassifierFreeGuidance()
    assert not pipe.call(wan)
    for guider in (ClassifierFreeGuidance(guidance_rescale=0.5), AdaptiveProjectedGuidance()):
        pipe.guider = guider
        assert type(guider).__name__ + " combines" in pipe.call(wan)[0]
