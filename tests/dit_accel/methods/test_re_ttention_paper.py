"""re-ttention in mode paper equals the released processors step by step, in text rows as well.

The reference is written from the paper's formulas with explicit attention maps, in double precision.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from support.attention_inputs import attention_call
from support.tiny_pipelines import TINY
from torch import Tensor

from dit_accel import RasterWindow, ReTtention
from dit_accel.core.attention_call import AttentionCall
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.runtime.recipes import ModelTraits, find_recipe, list_recipes, read_profile
from dit_accel_pipelines import TokenLayout


@dataclass
class Published:
    """The published rule for one attention module.

    Attributes:
        mask: Kept pairs, bool ``[S, S]``.
        warm_up: Number of full steps at the start.
        refresh: Steps from one full step to the next.
        weight, bias: Output projection ``[C, C]`` and ``[C]``. The residual is stored after it.
    """

    mask: np.ndarray
    warm_up: int
    refresh: int
    weight: np.ndarray
    bias: np.ndarray
    lam: float = 0.04
    ratio: np.ndarray = field(default_factory=lambda: np.zeros(()))
    residual: np.ndarray = field(default_factory=lambda: np.zeros(()))

    def run(self, step: int, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return the projected attention ``[B, S, C]`` of a step, from ``[B, H, S, D]``."""
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
        exponentials = np.exp(scores - scores.max(-1, keepdims=True))
        whole = exponentials.sum(-1, keepdims=True)
        if step < self.warm_up:
            return self.project(exponentials / whole @ value)
        masked_scores = np.where(self.mask, scores, -np.inf)
        masked = np.exp(masked_scores - masked_scores.max(-1, keepdims=True))
        masked_sum = masked.sum(-1, keepdims=True)
        if step % self.refresh == 0:
            kept = np.where(self.mask, exponentials, 0.0).sum(-1, keepdims=True)
            self.ratio = kept / whole
            full = self.project(exponentials / whole @ value)
            self.residual = full - self.project(masked / (masked_sum / self.ratio) @ value)
            return full
        out = self.project(masked / (masked_sum / self.ratio) @ value) + self.residual
        self.ratio = self.ratio + self.lam
        return out

    def project(self, heads: np.ndarray) -> np.ndarray:
        batch, _, tokens, _ = heads.shape
        return heads.swapaxes(1, 2).reshape(batch, tokens, -1) @ self.weight.T + self.bias


def released_mask(layout: TokenLayout, sparsity: float) -> np.ndarray:
    """Return the released mask of a layout whose text comes first."""
    places = layout.height * layout.width
    place = np.arange(layout.visual_tokens) % places
    mask = np.ones((layout.text_tokens + layout.visual_tokens,) * 2, bool)
    near = abs(place[:, None] - place) <= int(places * sparsity) // 2
    mask[layout.text_tokens :, layout.text_tokens :] = near
    return mask


def drifting_calls(layout: TokenLayout, steps: int) -> list[AttentionCall]:
    """Return the calls of a run whose queries, keys and values change from step to step."""
    start, end = (attention_call(layout, batch=2, seed=seed) for seed in (0, 1))
    calls = []
    for step in range(steps):
        share = step / steps
        tensors = {
            name: (1 - share) * getattr(start, name) + share * getattr(end, name)
            for name in ("query", "key", "value")
        }
        context = dataclasses.replace(start.context, step=step, num_steps=steps)
        calls.append(dataclasses.replace(start, **tensors, context=context))
    return calls


CASES = {
    # recipe: layout, steps, full steps at the start
    "pixart-1024": (TokenLayout(1, 16, 16), 20, 5),
    "hunyuan-dit-1024": (TokenLayout(1, 12, 16), 50, 10),
    "cogvideox-2b": (TokenLayout(3, 8, 12, 11, text_first=True), 50, 15),
}
SPARSE_STEPS = {"pixart-1024": 12, "hunyuan-dit-1024": 32, "cogvideox-2b": 28}


@pytest.mark.parametrize("name", CASES)
def test_every_step_of_a_recipe_equals_the_released_rule(name: str) -> None:
    layout, steps, warm_up = CASES[name]
    profile = read_profile(f"re-ttention:{name}")
    method = profile.method
    assert isinstance(method, ReTtention)
    generator = np.random.default_rng(0)
    weight, bias = generator.normal(size=(48, 48)) / 7, generator.normal(size=48)
    reference = Published(released_mask(layout, 1 / 32), warm_up, 5, weight, bias)
    ops, state, errors, sparse_steps = Ops(Timer()), method.new_state(), [], 0
    for step, call in enumerate(drifting_calls(layout, steps)):
        arrays = [t.transpose(1, 2).double().numpy() for t in (call.query, call.key, call.value)]
        expected = reference.run(step, *arrays)
        if profile.schedule.is_dense(call.context, ()):
            out = ops.dense(call)
        else:
            attended = method.attend(call, state, ops)
            assert attended is not None
            out = attended.out
            sparse_steps += float(attended.density) < 1
        found = out.flatten(2).double().numpy() @ weight.T + bias
        errors += [relative(found, expected)]
        if layout.text_tokens:
            rows = slice(0, layout.text_tokens)
            errors += [relative(found[:, rows], expected[:, rows])]
    assert sparse_steps == SPARSE_STEPS[name]
    assert max(errors) < 5e-7


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative L2 error."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_the_rule_is_not_the_merged_one() -> None:
    """Without lambda, or with the ratio of the new step, the result is another one."""
    calls = drifting_calls(TokenLayout(1, 8, 8), 4)
    outs: list[Tensor] = []
    for method in (
        ReTtention(mode="paper", mask="raster-window"),
        ReTtention(mode="paper", mask="raster-window", lam=0.0),
        ReTtention(mode="merge", mask="raster-window"),
    ):
        state, ops = method.new_state(), Ops(Timer())
        attended = [method.attend(call, state, ops) for call in calls]
        assert attended[3] is not None
        outs.append(attended[3].out)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (outs[one] - outs[other]).norm() / outs[one].norm() > 1e-3
    assert torch.isfinite(outs[0]).all()


@pytest.mark.parametrize("recipe", list_recipes(method="re-ttention"), ids=lambda r: r.name)
def test_recipes_run_on_their_families(recipe) -> None:
    tiny = TINY[recipe.family]
    pipe = tiny.build()
    plain = tiny.run(pipe, True, num_inference_steps=10)
    session = pipe.enable_sparse_attention(profile="re-ttention:published")
    assert session.profile.provenance["recipe"] == recipe.name
    found = tiny.run(pipe, True, num_inference_steps=10)
    report = pipe.attention_report()
    dense = {"pixart": 3, "hunyuan-dit": 2, "cogvideox": 3}[recipe.family]
    layers = len(tiny.blocks)
    assert report.calls == {"dense": dense * layers, "sparse": (10 - dense) * layers, "fallback": 0}
    assert found.isfinite().all()
    assert not torch.equal(found, plain)
    assert session.profile.method.inner == RasterWindow(window=1 / 32)


def test_the_published_recipe_belongs_to_a_family() -> None:
    for family, name in {"pixart": "pixart-1024", "cogvideox": "cogvideox-2b"}.items():
        recipe = find_recipe("re-ttention:published", ModelTraits(family))
        assert recipe.name == f"re-ttention:{name}"
        assert recipe.citation.startswith("Re-ttention bbec1f5")
