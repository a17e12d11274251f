"""Steps are counted on the steps that run: with a strength, with few steps, and with repeated timesteps."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    StableDiffusion3Img2ImgPipeline,
    WanVideoToVideoPipeline,
)
from support.tiny_pipelines import TINY

from dit_accel import SVG2, Schedule
from dit_accel.hooks.step_tracker import StepTracker

COARSE = SVG2(query_clusters=4, key_clusters=12, top_p=0.5, min_key_share=0.0)
HALF = Schedule(dense_steps=0.5, min_tokens=0)


def track(scheduler, start: int = 0, *, begins: bool = False, branches: int = 2):
    """Run a pipeline's loop on a scheduler; return the steps and the number of steps that were told."""
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps[start:]
    if begins:
        scheduler.set_begin_index(start)
    pipe = Holder(scheduler)
    tracker, infos = StepTracker(pipe), []
    latents = torch.randn(1, 4, 8, 8)
    for t in timesteps:
        infos += [tracker.update(None, t.expand(1)) for _ in range(branches)]
        latents = scheduler.step(torch.zeros_like(latents), t, latents).prev_sample
    return infos, len(timesteps)


class Holder:
    """An object with a scheduler, like a pipeline."""

    def __init__(self, scheduler) -> None:
        self.scheduler = scheduler


SCHEDULERS = [
    FlowMatchEulerDiscreteScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
]


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: s.__name__)
def test_every_scheduler_counts_the_steps_that_run(scheduler, start: int, branches: int) -> None:
    kinds = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    pipe_holds = scheduler(**kinds)
    for begins in {False, hasattr(pipe_holds, "set_begin_index")}:
        infos, count = track(scheduler(**kinds), start, begins=begins, branches=branches)
        assert [info.step for info in infos] == [i for i in range(count) for _ in range(branches)]
        assert [info.new_run for info in infos].count(True) == 1
        assert infos[-1].num_steps == count
        assert infos[-1].skipped == start


def test_a_pndm_pipeline_is_guided_in_every_step() -> None:
    row = TINY["pixart"]
    pipe = row.build()
    pipe.scheduler = PNDMScheduler(skip_prk_steps=True)
    pipe.enable_perturbed_guidance(2.0)
    pipe.enable_sparse_attention(COARSE, schedule=HALF)
    row.run(pipe, cfg=True, num_inference_steps=5)
    report = pipe.attention_report()
    assert report.guidance["forwards"] == 6
    assert report.calls["dense"] == report.calls["sparse"]


def image_to_image(family: str):
    pipes = {
        "flux": FluxImg2ImgPipeline,
        "sd3": StableDiffusion3Img2ImgPipeline,
        "wan": WanVideoToVideoPipeline,
    }
    parts = dict(TINY[family].build().components)
    parts.pop("transformer_2", None)
    if family == "flux":
        parts = {**parts, "image_encoder": None, "feature_extractor": None}
    if family != "wan":
        parts["vae"].register_to_config(shift_factor=0.0)
    pipe = pipes[family](**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("family", ["flux", "sd3", "wan"])
def test_a_strength_counts_dense_steps_on_the_steps_that_run(family: str) -> None:
    pipe = image_to_image(family)
    arguments = {k: v for k, v in TINY[family].call(False).items() if k != "num_frames"}
    size = arguments["height"], arguments["width"]
    if family == "wan":
        given = {"video": torch.zeros(1, 9, 3, *size)}
        arguments = {**arguments, "guidance_scale": 1.0}
    else:
        given = {"image": torch.zeros(1, 3, *size)}
    pipe.enable_sparse_attention(COARSE, schedule=HALF)
    pipe(**given, **arguments, strength=0.4, num_inference_steps=10, output_type="latent")
    report = pipe.attention_report()
    assert report.calls["dense"] == report.calls["sparse"] > 0, report
    assert not report.remarks


def test_a_single_step_that_is_dense_is_remarked(wan, run_wan) -> None:
    wan.enable_sparse_attention(COARSE, schedule=Schedule(dense_steps=0.2, min_tokens=0))
    run_wan(wan, num_inference_steps=1)
    report = wan.attention_report()
    assert report.calls["sparse"] == 0
    assert any("the only step ran dense, because dense_steps 0.2" in r for r in report.remarks)
    assert "dense" in str(report.no_effect)
    run_wan(wan, num_inference_steps=4)
    assert not wan.attention_report().remarks
