"""Diffusion forcing: each frame has a timestep of its own, and a long video is made stretch by stretch."""

from typing import Any

import pytest
import torch
from diffusers import (
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)
from support.tiny_components import ready, wan
from support.tiny_pipelines import embeds

from dit_accel import SVG2, Schedule
from dit_accel.runtime.active_sessions import session_of
from dit_accel_pipelines import find_family
from dit_accel_pipelines.family import CHUNKED

SPARSE = SVG2(query_clusters=4, key_clusters=12, top_p=0.5, min_key_share=0.0)
HALF = Schedule(dense_steps=0.5, min_tokens=0)
BLOCKS, BRANCHES, STEPS = 2, 2, 4


@pytest.fixture
def forcing() -> Any:
    vae = wan().vae
    torch.manual_seed(0)
    transformer = SkyReelsV2Transformer3DModel(
        *((1, 2, 2), 2, 16, 8, 8, 16, 16, 32, BLOCKS), rope_max_seq_len=64
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )
    parts = {"tokenizer": None, "text_encoder": None}
    return ready(
        SkyReelsV2DiffusionForcingPipeline(
            vae=vae, transformer=transformer, scheduler=scheduler, **parts
        )
    )


def moments(pipe: Any, frames: int, **further: Any) -> list[tuple[int, int | None, bool]]:
    """Step, number of steps and whether a run is new, of the forwards with the prompt."""
    tracker, seen = session_of(pipe)._contexts.find(pipe).tracker, []
    tick = tracker.update

    def watched(context, timestep, latents, *, own_loop):
        moment = tick(context, timestep, latents, own_loop=own_loop)
        if moment.branch == "cond":
            seen.append((moment.step, moment.num_steps, moment.new_run))
        return moment

    tracker.update = watched
    pipe(
        prompt=None,
        prompt_embeds=embeds(1),
        negative_prompt_embeds=embeds(2),
        height=32,
        width=32,
        num_frames=frames,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        **further,
    )
    return seen


def test_each_stretch_of_a_long_video_is_a_run(forcing) -> None:
    forcing.enable_sparse_attention(SPARSE, schedule=HALF)
    seen = moments(forcing, 29, base_num_frames=17, overlap_history=9, addnoise_condition=20)
    one = [(step, STEPS, step == 0) for step in range(STEPS)]
    assert seen == one * 3, "the last one is shorter"
    half = BLOCKS * BRANCHES * STEPS // 2
    assert forcing.attention_report().calls == {"dense": half, "sparse": half, "fallback": 0}


def test_frames_that_begin_later_take_more_steps(forcing) -> None:
    forcing.enable_sparse_attention(SPARSE, schedule=HALF)
    seen = moments(forcing, 9, ar_step=2)
    assert seen == [(step, len(seen), step == 0) for step in range(len(seen))]
    assert len(seen) > STEPS


def test_adaptive_guidance_is_refused_where_frames_have_noise_of_their_own(forcing) -> None:
    forcing.enable_perturbed_guidance(2.0, heads="blocks.1", adaptive=0.001)
    assert len(moments(forcing, 9)) == STEPS
    with pytest.raises(RuntimeError, match="one noise level for each"):
        moments(forcing, 9, ar_step=2)


def test_the_table_of_families_tells_of_stretches() -> None:
    remark = find_family("SkyReelsV2Transformer3DModel").remark
    assert CHUNKED in remark
    assert "mask keeps calls dense" in remark
