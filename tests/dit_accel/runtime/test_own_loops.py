"""Loops of the user's own around a bare transformer: each clip equals itself alone, and states stay few."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import dit_accel
from dit_accel import SVG2, ReTtention, Schedule
from dit_accel.hooks.streams import StreamTracker

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
METHODS = [
    SVG2(query_clusters=4, key_clusters=12, top_p=0.5, min_key_share=0.0),
    ReTtention(density=0.3),
    SVG2(refresh=5),
]
LAYERS = 3
SHAPE = (1, 8, 6, 8, 8)


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Loop:
    """A denoising loop around a transformer.

    Args:
        transformer: The transformer.
        named: True to name the branches by cache contexts.
        numbered: True to number the steps, too.
        cfg: True for classifier-free guidance.
    """

    def __init__(self, transformer, named=True, numbered=False, cfg=False) -> None:
        self.transformer, self.named, self.numbered = transformer, named, numbered
        self.branches = ("cond", "uncond") if cfg else ("cond",)

    def predict(self, latents: Tensor, timestep: float, step: int, count: int) -> Tensor:
        outputs = []
        for index, branch in enumerate(self.branches):
            numbers = {"step_index": step, "num_inference_steps": count} if self.numbered else {}
            context = self.transformer.cache_context(branch, **numbers)
            with context if self.named else nullcontext(), torch.no_grad():
                output = self.transformer(
                    hidden_states=latents,
                    timestep=torch.tensor([timestep]),
                    encoder_hidden_states=torch.full((1, 4, 32), 0.1 * index),
                )
            outputs.append(output.sample)
        return outputs[-1] + 3 * (outputs[0] - outputs[-1])

    def steps(self, seed: int, timesteps: list[float], shape=SHAPE) -> Iterator[Tensor]:
        """Yield the latents after each step."""
        latents = noise(seed, shape)
        for i, timestep in enumerate(timesteps):
            following = timesteps[i + 1] if i + 1 < len(timesteps) else 0.0
            prediction = self.predict(latents, timestep, i, len(timesteps))
            latents = latents + (following - timestep) / 1000 * prediction
            yield latents

    def clip(self, seed: int, timesteps: list[float], shape=SHAPE, stop: int = 99) -> Tensor:
        """Return the latents of a clip, or of its first ``stop`` steps."""
        return list(itertools.islice(self.steps(seed, timesteps, shape), stop))[-1]


ONE, TWO, FOUR = [999.0], [999.0, 500.0], [999.0, 750.0, 500.0, 250.0]
RISING = [0.0, 300.0, 600.0]
# (timesteps, shape, stop) of the clip before, and of the clip that is compared.
TRANSITIONS = {
    "1-1": ((ONE, SHAPE, 9), (ONE, SHAPE, 9)),
    "1-4": ((ONE, SHAPE, 9), (FOUR, SHAPE, 9)),
    "4-1": ((FOUR, SHAPE, 9), (ONE, SHAPE, 9)),
    "2-2": ((TWO, SHAPE, 9), (TWO, SHAPE, 9)),
    "4-4": ((FOUR, SHAPE, 9), (FOUR, SHAPE, 9)),
    "2-4": ((TWO, SHAPE, 9), (FOUR, SHAPE, 9)),
    "other shape": ((ONE, SHAPE, 9), (ONE, (1, 8, 6, 4, 8), 9)),
    "stopped after one step": ((FOUR, SHAPE, 1), (FOUR, SHAPE, 9)),
    "stopped after two steps": ((FOUR, SHAPE, 2), (FOUR, SHAPE, 9)),
    "rising timesteps": ((RISING, SHAPE, 9), (RISING, SHAPE, 9)),
}
NAMES = {
    "named": {"named": True},
    "numbered": {"named": True, "numbered": True},
    "unnamed": {"named": False},
    "named cfg": {"named": True, "cfg": True},
    "unnamed cfg": {"named": False, "cfg": True},
}

SLOW = {"numbered", "unnamed cfg"}
NAMINGS = [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES]


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_a_clip_equals_itself_alone(wan, transition: str, names: str) -> None:
    before, compared = TRANSITIONS[transition]
    loop = Loop(wan.transformer, **NAMES[names])
    for method in METHODS[:2]:
        with dit_accel.enable_sparse_attention(wan.transformer, method, schedule=ALWAYS):
            alone = loop.clip(1, *compared)
        with dit_accel.enable_sparse_attention(wan.transformer, method, schedule=ALWAYS):
            loop.clip(0, *before)
            assert torch.equal(loop.clip(1, *compared), alone)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("names", NAMINGS)
def test_forty_clips_of_one_step_keep_at_most_two_states(wan, names: str, method) -> None:
    loop = Loop(wan.transformer, **NAMES[names])
    names_in_step = 2 if names == "named cfg" else 1
    with dit_accel.enable_sparse_attention(wan.transformer, method, schedule=ALWAYS):
        alone = loop.clip(39, ONE)
    with dit_accel.enable_sparse_attention(wan.transformer, method, schedule=ALWAYS) as session:
        for seed in range(40):
            clip = loop.clip(seed, ONE)
            states = len(session._contexts.latest.run.states) / LAYERS
            assert states <= 2 * names_in_step
    assert torch.equal(clip, alone)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("names", NAMINGS)
def test_windows_of_a_step_neither_mix_nor_lose_their_state(wan, names: str, count: int) -> None:
    """With three windows, the first lose the state of the first step, which could have been another clip's."""
    loop = Loop(wan.transformer, **NAMES[names])
    for method in METHODS:
        alone = []
        for seed in range(count):
            with dit_accel.enable_sparse_attention(wan.transformer, method, schedule=ALWAYS):
                alone.append(loop.clip(seed, FOUR))
        with dit_accel.enable_sparse_attention(wan.transformer, method, schedule=ALWAYS) as session:
            windows = [loop.steps(seed, FOUR) for seed in range(count)]
            for _ in FOUR:
                latents = [next(window) for window in windows]
                assert len(session._contexts.latest.run.states) <= LAYERS * 2 * count
        kept = zip(latents[-2:], alone[-2:], strict=True)
        assert "cfg" in names or all(torch.equal(window, clip) for window, clip in kept)
        # A window may lose its first plan, which changes it little. The plan of another window would change it much.
        for window, clip in zip(latents, alone, strict=True):
            assert torch.linalg.norm(window - clip) < 0.05 * torch.linalg.norm(clip)


@pytest.mark.parametrize("names", ["named", "unnamed"])
def test_loops_around_the_transformer_of_a_pipeline(wan, names: str) -> None:
    """Attention is enabled on the pipeline, and its scheduler is not stepped between the clips."""
    loop = Loop(wan.transformer, **NAMES[names])
    for compared in (ONE, FOUR):
        with wan.enable_sparse_attention(METHODS[0], schedule=ALWAYS):
            alone = loop.clip(9, compared)
        with wan.enable_sparse_attention(METHODS[0], schedule=ALWAYS) as session:
            for seed in range(9):
                loop.clip(seed, ONE)
                assert len(session._contexts.latest.run.states) <= LAYERS * 2
            assert torch.equal(loop.clip(9, compared), alone)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_windows_in_another_order_do_not_mix(order: tuple[int, ...]) -> None:
    tracker = StreamTracker()
    samples = [noise(seed) for seed in range(3)]
    first = [tracker.find("cond", 0, sample, bounded=True) for sample in samples]
    second = {i: tracker.find("cond", 1, 0.9 * samples[i], bounded=True) for i in order}
    assert len({*first, *second.values()}) == 4, "one window lost its first state"
    for step in (2, 3):
        for i in order:
            assert tracker.find("cond", step, samples[i] + step, bounded=True) == second[i]


def test_latents_that_are_not_finite_continue_no_other_stream() -> None:
    tracker = StreamTracker()
    for seed in range(2):
        tracker.find("cond", 0, noise(seed), bounded=False)
    lost = torch.full(SHAPE, torch.nan)
    keys = [tracker.find("cond", step, lost, bounded=False) for step in (1, 2)]
    assert len(set(keys)) == 2


def test_a_call_outside_a_forward_does_not_join_the_run_of_another_thread(wan) -> None:
    """A thread calls an attention module itself while another thread runs the transformer."""
    attention, hidden = wan.transformer.blocks[0].attn1, torch.randn(1, 96, 32)
    expected = attention(hidden)
    outputs: list[Tensor] = []

    def call_directly(*_) -> None:
        thread = threading.Thread(target=lambda: outputs.append(attention(hidden)))
        thread.start()
        thread.join()

    with dit_accel.enable_sparse_attention(wan.transformer, METHODS[0], schedule=ALWAYS):
        handle = wan.transformer.blocks[1].register_forward_hook(call_directly)
        Loop(wan.transformer).clip(0, ONE)
        handle.remove()
    assert torch.equal(outputs[0], expected)
