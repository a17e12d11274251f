"""Guidance that depends on the step: intervals, and a scale that falls with the noise level."""

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXVideoToVideoPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from support.tiny_pipelines import TINY, embeds

from dit_accel.errors import InvalidSettings
from dit_accel.guidance.noise import noise_levels
from dit_accel.runtime.active_sessions import session_of


@pytest.fixture
def video_to_video():
    """A pipeline whose scheduler has no step index, and a function that runs its last 3 steps of 10."""
    base = TINY["cogvideox"].build()
    pipe = CogVideoXVideoToVideoPipeline(
        None, None, base.vae, base.transformer, CogVideoXDDIMScheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 3, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    arguments = {"strength": 0.3, "num_inference_steps": 10, "height": 32, "width": 48}

    def run():
        texts = {"prompt_embeds": embeds(1), "negative_prompt_embeds": embeds(2)}
        return pipe(latents=latents, output_type="latent", **texts, **arguments)

    return pipe, run


@pytest.mark.parametrize(
    ("settings", "forwards"),
    [
        ({"interval": (0.0, 0.4)}, 0),
        ({"interval": (0.7, 0.9)}, 2),
        ({"interval": (0.8, 1.0)}, 2),
        ({"adaptive": 0.0036}, 1),
    ],
    ids=str,
)
def test_video_to_video_starts_inside_the_interval(video_to_video, settings, forwards) -> None:
    pipe, run = video_to_video
    with pipe.enable_perturbed_guidance(3.0, heads="transformer_blocks.1", **settings):
        run()
        assert pipe.attention_report().guidance["forwards"] == forwards


def test_scale_falls_with_the_noise_if_timesteps_rise() -> None:
    tiny = TINY["mochi"]
    pipe = tiny.build()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    with pipe.enable_perturbed_guidance(3.0, heads=tiny.blocks[1], adaptive=0.18):
        tiny.run(pipe, True)
        assert pipe.scheduler.timesteps[0] == 0, "pure noise"
        noise = [1000.0 - timestep for timestep in pipe.scheduler.timesteps.tolist()]
        guided = sum(3.0 - 0.18 * (1000.0 - level) > 0 for level in noise)
        assert 0 < guided < 3
        assert pipe.attention_report().guidance["forwards"] == guided
        assert noise_levels(pipe.scheduler) == pytest.approx(noise)


@pytest.mark.parametrize(
    "scheduler",
    [EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)],
    ids=lambda s: type(s).__name__,
)
def test_timesteps_of_another_meaning_are_invalid(scheduler) -> None:
    tiny = TINY["ltx"]
    pipe = tiny.build()
    pipe.scheduler = scheduler
    with pytest.raises(
        InvalidSettings, match=r"needs timesteps of 0 to 1000, and those of .* are different"
    ):
        pipe.enable_perturbed_guidance(3.0, heads=tiny.blocks[1], adaptive=0.003)
    assert session_of(pipe) is None
    pipe.enable_perturbed_guidance(3.0, heads=tiny.blocks[1])


def test_timesteps_that_a_run_sets_are_checked_in_the_run() -> None:
    """Cosmos Predict2 sets sigmas above 1."""
    tiny = TINY["ltx"]
    pipe = tiny.build()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    pipe.scheduler.register_to_config(sigma_max=80.0, sigma_min=0.002)
    pipe.enable_perturbed_guidance(3.0, heads=tiny.blocks[1], adaptive=0.003)
    with pytest.raises(InvalidSettings, match="needs timesteps of 0 to 1000"):
        tiny.run(pipe)
