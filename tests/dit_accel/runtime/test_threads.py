"""Threads that share one transformer: each run equals itself alone, or the second gets one clear error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

import dit_accel
from dit_accel import SVG2, ReTtention, Schedule
from dit_accel.errors import RunFailed

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
COARSE = SVG2(query_clusters=4, key_clusters=12, top_p=0.5, min_key_share=0.0)
THREADS = 8


def sharing(pipe: WanPipeline) -> WanPipeline:
    """Return a pipeline with a scheduler of its own that shares the other components."""
    parts = {name: part for name, part in pipe.components.items() if name != "scheduler"}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    made = WanPipeline(**parts, scheduler=scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def run_at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Run functions in threads that begin together; return their results or errors."""
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(start, calls))


@pytest.mark.parametrize("guided", [False, True], ids=["sparse", "guided"])
@pytest.mark.parametrize("method", [COARSE, ReTtention(density=0.3)], ids=["svg2", "re-ttention"])
def test_eight_pipelines_share_a_transformer(wan, run_wan, method, guided: bool) -> None:
    names = set(wan.transformer.state_dict())
    plain = run_wan(wan)
    wan.enable_sparse_attention(method, schedule=ALWAYS)
    if guided:
        wan.enable_perturbed_guidance(2.0, heads="blocks.1; blocks.2")
    alone = [run_wan(wan, seed=seed) for seed in range(THREADS)]
    guided_forwards = wan.attention_report().guidance["forwards"] if guided else 0
    pipes = [sharing(wan) for _ in range(THREADS)]

    def render(seed: int) -> tuple[torch.Tensor, Any]:
        return run_wan(pipes[seed], seed=seed), pipes[seed].attention_report()

    results = run_at_once([lambda seed=seed: render(seed) for seed in range(THREADS)])
    for (clip, report), expected in zip(results, alone, strict=True):
        assert torch.equal(clip, expected)
        assert report.calls["fallback"] == 0
        assert not guided or report.guidance["forwards"] == guided_forwards
    if guided:
        wan.disable_perturbed_guidance()
    wan.disable_sparse_attention()
    assert set(wan.transformer.state_dict()) == names
    assert torch.equal(run_wan(wan), plain)


def test_threads_share_a_bare_transformer(wan) -> None:
    def clip(seed: int) -> torch.Tensor:
        latents = torch.randn(1, 8, 6, 8, 8, generator=torch.Generator().manual_seed(seed))
        for timestep in (999.0, 600.0, 300.0):
            with torch.no_grad():
                latents = (
                    latents
                    - 0.3
                    * wan.transformer(
                        hidden_states=latents,
                        timestep=torch.tensor([timestep]),
                        encoder_hidden_states=torch.zeros(1, 4, 32),
                    ).sample
                )
        return latents

    with dit_accel.enable_sparse_attention(wan.transformer, COARSE, schedule=ALWAYS) as session:
        alone = [clip(seed) for seed in range(THREADS)]
        results = run_at_once([lambda seed=seed: clip(seed) for seed in range(THREADS)])
        assert all(torch.equal(*pair) for pair in zip(results, alone, strict=True))
        assert session.report().calls["fallback"] == 0


def test_a_second_thread_of_the_same_pipeline_gets_an_error(wan, run_wan) -> None:
    wan.enable_sparse_attention(COARSE, schedule=ALWAYS)
    expected = run_wan(wan)
    runs = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def second() -> None:
        runs[0].wait()
        try:
            wan.transformer(
                hidden_states=torch.randn(1, 8, 6, 8, 8),
                timestep=torch.tensor([999.0]),
                encoder_hidden_states=torch.zeros(1, 4, 32),
            )
        except RunFailed as error:
            errors.append(error)
        runs[1].set()

    thread = threading.Thread(target=second)
    thread.start()
    handle = wan.transformer.blocks[0].register_forward_hook(
        lambda *_: (runs[0].set(), runs[1].wait(20), None)[-1]
    )
    assert torch.equal(run_wan(wan), expected)
    thread.join()
    handle.remove()
    assert "two threads run the same pipeline" in str(errors[0])
    assert torch.equal(run_wan(wan), expected)
