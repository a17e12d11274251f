"""Modular pipelines tell steps, too; where nothing tells their number, reports say what that leaves out."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep
from support.tiny_components import flow, wan
from support.tiny_pipelines import embeds

import dit_accel
from dit_accel import SVG2, Rule, Schedule
from dit_accel.runtime.active_sessions import session_of

SPARSE = SVG2(query_clusters=4, key_clusters=12, top_p=0.5, min_key_share=0.0)
HALF = Schedule(dense_steps=0.5, min_tokens=0)
BLOCKS, STEPS, BRANCHES = 3, 4, 2
LATENTS = torch.randn(1, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def modular() -> Any:
    pipe = WanCoreDenoiseStep().init_pipeline()
    pipe.update_components(
        transformer=wan().transformer, scheduler=flow(), guider=ClassifierFreeGuidance(4.0)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def _disabled(modular) -> Iterator[None]:
    yield
    dit_accel.disable_sparse_attention(modular)


def run(pipe: Any) -> torch.Tensor:
    return pipe(
        prompt_embeds=embeds(1),
        negative_prompt_embeds=embeds(2),
        num_inference_steps=STEPS,
        latents=LATENTS,
        output="latents",
    )


@pytest.mark.parametrize("on_transformer", [False, True])
def test_a_modular_pipelines_first_steps_are_dense(modular, on_transformer) -> None:
    """Also found while it runs, where this was enabled on its transformer."""
    target = modular.transformer if on_transformer else modular
    session = dit_accel.enable_sparse_attention(target, SPARSE, schedule=HALF)
    for _ in range(2):  # each run counts anew
        run(modular)
        half = BLOCKS * BRANCHES * STEPS // 2
        assert session.report().calls == {"dense": half, "sparse": half, "fallback": 0}
        assert not any("number of steps" in remark for remark in session.report().remarks)


def test_rules_in_percent_hold_in_a_modular_pipeline(modular) -> None:
    rules = (Rule(steps="0%-75%", dense=True),)
    schedule = Schedule(dense_steps=0, min_tokens=0, rules=rules)
    session = dit_accel.enable_sparse_attention(modular, SPARSE, schedule=schedule)
    run(modular)
    assert session.report().calls["sparse"] == BLOCKS * BRANCHES * STEPS // 4


def test_guidance_of_a_modular_pipeline_keeps_to_its_guider(modular) -> None:
    """The session follows the pipeline; the guider still tells which prediction a forward makes."""
    dit_accel.enable_perturbed_guidance(modular, 2.0, heads="blocks.1")
    run(modular)
    report = dit_accel.attention_report(modular)
    assert report.guidance["forwards"] == STEPS
    assert not report.remarks
    dit_accel.disable_perturbed_guidance(modular)


def loop(transformer: torch.nn.Module, numbered: bool = False) -> list[str]:
    """Remarks on a loop of one's own."""
    with torch.no_grad():
        for step, timestep in enumerate((900.0, 500.0)):
            told = {"step_index": step, "num_inference_steps": 2} if numbered else {}
            with transformer.cache_context("cond", **told):
                transformer(LATENTS, torch.tensor([timestep]), embeds(1), return_dict=False)
    return session_of(transformer).report().remarks


def test_what_an_unknown_number_of_steps_leaves_out_is_told(modular) -> None:
    rules = (Rule(steps="50%-100%", dense=True), Rule(steps="1", dense=True), Rule(steps="-1"))
    schedule = Schedule(dense_steps=0.25, min_tokens=0, rules=rules)
    transformer = modular.transformer
    dit_accel.enable_sparse_attention(transformer, SPARSE, schedule=schedule)
    (told,) = [remark for remark in loop(transformer) if "number of steps" in remark]
    assert "dense_steps 0.25, rule 0 (50%-100%), rule 2 (-1)." in told
    assert "cache_context(name, step_index=i, num_inference_steps=n)" in told
    assert not any("number of steps" in remark for remark in loop(transformer, numbered=True))
    plain = Schedule(dense_steps=0, min_tokens=0, rules=rules[1:2])
    dit_accel.enable_sparse_attention(transformer, SPARSE, schedule=plain)
    assert not any("number of steps" in remark for remark in loop(transformer))
    dit_accel.enable_sparse_attention(transformer, "dense")
    assert not any("number of steps" in remark for remark in loop(transformer))


class Loop:
    """Somebody's own, with a scheduler."""

    def __init__(self, transformer: torch.nn.Module, scheduler: Any) -> None:
        self.transformer, self.scheduler = transformer, scheduler


def test_the_scheduler_of_an_object_that_is_no_pipeline_is_followed(modular) -> None:
    own = Loop(modular.transformer, modular.scheduler)
    own.scheduler.set_timesteps(2)
    session = dit_accel.enable_sparse_attention(own, SPARSE, schedule=HALF)
    assert session.serves(own)
    assert not session.serves(Loop(modular.transformer, modular.scheduler))
    assert not any("number of steps" in remark for remark in loop(own.transformer))
    # to which Python has no weak references
    simple = SimpleNamespace(transformer=own.transformer, scheduler=flow())
    assert dit_accel.enable_sparse_attention(simple, SPARSE, schedule=HALF).serves(simple)
    assert any("number of steps" in remark for remark in loop(own.transformer))
