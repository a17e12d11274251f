"""Random sequences of what users do: after disabling, a pipeline equals a twin that never had attention enabled."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from peft import LoraConfig
from support.tiny_pipelines import TINY

from dit_accel import SVG, SVG2, Band, Neighborhood, ReTtention, Schedule
from dit_accel.hooks.layers import _LAYERS
from dit_accel.runtime.active_sessions import sessions_of
from dit_accel.runtime.session import Session

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
METHODS = (
    SVG2(query_clusters=4, key_clusters=12, top_p=0.5, min_key_share=0.0),
    ReTtention(density=0.3),
    SVG(density=0.4, block=16),
    Neighborhood(density=0.4),
    Band(density=0.4),
    "dense",
)
FAMILIES = ("wan", "hunyuan-video", "cogvideox", "flux", "sd3", "ltx", "mochi", "pixart")


class Interrupted(Exception):
    """Error that stops a run in the middle."""


class Twins:
    """A pipeline on which attention is enabled, and a twin on which it never is.

    Args:
        family: Name of the tiny pipeline.
        random: Source of the choices.
    """

    def __init__(self, family: str, random: random.Random) -> None:
        self.row, self.random = TINY[family], random
        self.ours, self.twin = self.row.build(), self.row.build()
        self.both = (self.ours, self.twin)
        self.has_lora = self.is_compiled = False
        self.cache: str | None = None

    # Ours.

    def enable_sparse(self) -> None:
        method = self.random.choice(METHODS)
        guard = self.random.choice(["off", "warn"])
        guard = "off" if method == "dense" else guard
        self.ours.enable_sparse_attention(method, schedule=ALWAYS, guard=guard)

    def disable_sparse(self) -> None:
        self.ours.disable_sparse_attention()

    def enable_quantized(self) -> None:
        self.ours.enable_quantized_attention()

    def enable_guidance(self) -> None:
        block = self.random.choice(self.row.blocks)
        self.ours.enable_perturbed_guidance(1.5, heads=block)

    def disable_guidance(self) -> None:
        self.ours.disable_perturbed_guidance()

    def run(self) -> None:
        self.row.run(self.ours, num_inference_steps=2)

    def interrupt(self) -> None:
        layer = self.random.choice(list(self.ours.transformer.modules())[1:])

        def stop(*_: Any) -> None:
            raise Interrupted

        handle = layer.register_forward_hook(stop)
        try:
            self.row.run(self.ours, num_inference_steps=2)
        except Interrupted:
            pass
        finally:
            handle.remove()
            if self.cache is not None:  # diffusers resets a cache after a whole run only
                self.ours.transformer._reset_stateful_cache()

    # Steps of other libraries, on both pipelines.

    def lora(self) -> None:
        for pipe in self.both:
            if not hasattr(pipe.transformer, "add_adapter"):
                continue
            if self.has_lora:
                pipe.transformer.delete_adapters("default")
            else:
                torch.manual_seed(5)
                targets = ["to_q", "to_v"]
                pipe.transformer.add_adapter(
                    LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
                )
        self.has_lora = not self.has_lora

    def offload(self) -> None:
        for pipe in self.both:
            pipe.enable_model_cpu_offload(device="cpu")

    def remove_hooks(self) -> None:
        for pipe in self.both:
            pipe.remove_all_hooks()

    def toggle_cache(self) -> None:
        config = self.random.choice(["first block", "pyramid"])
        if not hasattr(self.ours.transformer, "enable_cache"):
            return
        for pipe in self.both:
            if self.cache is not None:
                pipe.transformer.disable_cache()
            elif config == "first block":
                pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
            else:
                pipe.transformer.enable_cache(
                    PyramidAttentionBroadcastConfig(
                        spatial_attention_block_skip_range=2,
                        spatial_attention_timestep_skip_range=(100, 800),
                        current_timestep_callback=lambda: 500,
                    )
                )
        self.cache = None if self.cache is not None else config

    def convert(self) -> None:
        dtype = self.random.choice([torch.float32, torch.float64])
        for pipe in self.both:
            pipe.transformer.to(dtype).to(torch.float32)

    def compile_blocks(self) -> None:
        if not self.is_compiled and self.ours.transformer._repeated_blocks:
            for pipe in self.both:
                pipe.transformer.compile_repeated_blocks(backend="eager")
            self.is_compiled = True

    # The walk.

    def steps(self) -> list[Callable[[], None]]:
        own = [self.enable_sparse] * 3 + [self.run] * 3
        own += [self.disable_sparse, self.enable_quantized, self.interrupt]
        own += [self.enable_guidance, self.disable_guidance]
        return [*own, self.lora, self.offload, self.remove_hooks, self.toggle_cache, self.convert]

    def walk(self, length: int, compiles: bool) -> list[str]:
        """Take random steps; return their names. Combinations that are refused change nothing."""
        steps = [*self.steps(), *([self.compile_blocks] if compiles else [])]
        names = []
        for _ in range(length):
            step = self.random.choice(steps)
            names.append(step.__name__)
            try:
                step()
            except (RuntimeError, ValueError) as error:
                if "dit_accel" not in type(error).__module__ and "guard" not in str(error):
                    names.append(f"{type(error).__name__}: {error}")
                    if "cache" not in str(error) and "hook" not in str(error):
                        raise AssertionError(names) from error
        return names

    def disable_all(self) -> None:
        for session in sessions_of(self.ours):
            session.set_quantization(None)
        self.ours.disable_perturbed_guidance()
        self.ours.disable_sparse_attention()

    def check(self, names: list[str]) -> None:
        self.disable_all()
        assert not sessions_of(self.ours), names
        left, right = (self.row.run(pipe, num_inference_steps=2) for pipe in self.both)
        assert torch.equal(left, right), names
        left, right = (sorted(pipe.transformer.state_dict()) for pipe in self.both)
        assert left == right, names
        kinds = [
            [type(m.processor) for m in pipe.transformer.modules() if hasattr(m, "processor")]
            for pipe in self.both
        ]
        assert kinds[0] == kinds[1], names
        forwards = [
            getattr(pipe.transformer.forward, "__func__", None) is type(pipe.transformer).forward
            for pipe in self.both
        ]
        assert forwards[0] == forwards[1], names


def walk(seed: int, *, compiles: bool = False) -> None:
    torch._dynamo.reset()
    twins = Twins(FAMILIES[seed % len(FAMILIES)], random.Random(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = twins.walk(8, compiles)
        twins.check([f"seed {seed}", *names])


@pytest.mark.parametrize("seed", range(8))
def test_a_disabled_pipeline_equals_its_twin(seed: int) -> None:
    walk(seed)
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, Session)]
    assert not _LAYERS


def load_compiler() -> None:
    """Compile and run once, because the first time loads hundreds of modules."""
    twins = Twins("wan", random.Random(0))
    twins.enable_sparse()
    twins.compile_blocks()
    twins.run()
    twins.check(["load the compiler"])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_thousand_sequences_leave_nothing(part: int) -> None:
    load_compiler()
    sizes, of_compiler = [], 0
    for seed in range(1000 + 100 * part, 1100 + 100 * part):
        before = len(gc.get_objects())
        walk(seed, compiles=seed % 10 == 0)
        torch._dynamo.reset()
        gc.collect()
        assert not [o for o in gc.get_objects() if isinstance(o, Session)], seed
        assert not _LAYERS, seed
        if seed % 10 == 0:  # torch keeps records of each compilation, of an untouched pipeline, too
            of_compiler += len(gc.get_objects()) - before
        sizes.append(len(gc.get_objects()) - of_compiler)
    assert sizes[-1] < 1.02 * sizes[len(sizes) // 2], "memory grows"
