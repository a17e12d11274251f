"""What pipelines do to the guided prediction is told."""

import diffusers
import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from tiny_pipelines import TINY, embeds

from dit_accel.guidance.combining import deviations
from dit_accel_pipelines import families, find_family

NORM = "the pipeline scales the guided prediction to the norm of the conditional one"


class Pipe:
    """A pipeline whose call has arguments of the given names."""

    guider = None

    def __init__(self, **config):
        self.config = config

    def call(self, family, normalize=None, enable_cfg_renorm=None, clip_value=None):
        return list(deviations(self, family))


def family(name):
    return next(family for family in families() if family.name == name)


def test_a_pipeline_that_rescales_is_told() -> None:
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
def test_qwen_images_norm_is_told(qwen_image, cfg) -> None:
    mask = torch.ones(1, 5, dtype=torch.bool)
    arguments = {"prompt_embeds": embeds(1), "prompt_embeds_mask": mask}
    if cfg:
        arguments |= {"negative_prompt_embeds": embeds(2), "negative_prompt_embeds_mask": mask}
    size = {"height": 32, "width": 48, "num_inference_steps": 1, "output_type": "latent"}
    with qwen_image.enable_perturbed_guidance(2.0, heads="transformer_blocks.1"):
        qwen_image(**arguments, **size, true_cfg_scale=4.0)
        remarks = qwen_image.attention_report().remarks
    assert remarks == ([NORM + ", and with it what perturbed guidance adds"] if cfg else [])


def test_arguments_that_turn_it_on_count() -> None:
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


def test_another_guider_is_told() -> None:
    wan, pipe = find_family("WanTransformer3DModel"), Pipe()
    pipe.guider = ClassifierFreeGuidance()
    assert not pipe.call(wan)
    for guider in (ClassifierFreeGuidance(guidance_rescale=0.5), AdaptiveProjectedGuidance()):
        pipe.guider = guider
        assert type(guider).__name__ + " combines" in pipe.call(wan)[0]
