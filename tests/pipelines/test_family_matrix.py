"""Every family on a tiny random transformer: the seam, its layout, and what a method makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from support.attention_inputs import exact_attention
from support.tiny_transformers import ROWS
from support.tiny_transformers.base import BATCH, TinyTransformer
from torch import Tensor, nn

import dit_accel
from dit_accel import SVG2, Neighborhood, Schedule
from dit_accel.core.attention_call import AttentionCall
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.methods.base import Attended, Method
from dit_accel_pipelines import families

EVERYWHERE = Schedule(dense_steps=0.0, min_tokens=0)
PLACES = [(0, 0, 0), (1, 2, 3), (2, 3, 5)]


@dataclass(frozen=True, kw_only=True)
class Spy(Method):
    """Exact attention that keeps its calls."""

    name: ClassVar[str] = "spy"
    source: ClassVar[str] = "-"
    calls: list[AttentionCall] = field(default_factory=list, compare=False)

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        return None

    def attend(self, call: AttentionCall, state: Any, ops: Ops) -> Attended:
        self.calls.append(call)
        return Attended(exact_attention(call), torch.ones(()))


@pytest.fixture(params=ROWS, ids=[row.family for row in ROWS])
def row(request: pytest.FixtureRequest) -> TinyTransformer:
    return request.param


@pytest.fixture
def transformer(row: TinyTransformer) -> nn.Module:
    return row.build()


def first_layer(row: TinyTransformer, transformer: nn.Module, inputs: Any) -> list[AttentionCall]:
    """The calls of the first layer, sample by sample."""
    spy = Spy()
    with dit_accel.enable_sparse_attention(transformer, spy, schedule=EVERYWHERE):
        row.run(transformer, inputs)
    calls = [call for call in spy.calls if call.context.layer == 0]
    if len(calls) == 1:
        return [sample_of(calls[0], i) for i in range(BATCH)]
    assert len(calls) == BATCH
    return calls


def sample_of(call: AttentionCall, sample: int) -> AttentionCall:
    tensors = {n: getattr(call, n)[sample : sample + 1] for n in ("query", "key", "value")}
    return replace(call, **tensors)


def changed_tokens(before: AttentionCall, after: AttentionCall) -> Tensor:
    """How much the values of a token changed, as a share of the largest change."""
    change = (after.value - before.value).abs().amax((0, 2, 3))
    return change / change.max().clamp(min=1e-20)


def test_every_tested_family_has_a_row() -> None:
    """Of the families that the installed diffusers has."""
    rows = {row.family for row in ROWS}
    for family in families():
        here = any(hasattr(diffusers, name) for name in family.transformers)
        assert family.name in rows or not here or family.tested == "declared"


def test_passes_through_and_comes_back(row, transformer) -> None:
    expected = row.run(transformer)
    before = {n: m.processor for n, m in transformer.named_modules() if hasattr(m, "processor")}
    session = dit_accel.enable_sparse_attention(transformer, "dense")
    assert torch.equal(row.run(transformer), expected)
    assert session.report().family == row.family
    family = session.family
    modules = list(family.attention_modules(transformer))
    assert len(modules) == family.attention_shape(transformer.config).layers
    session.close()
    after = {n: m.processor for n, m in transformer.named_modules() if hasattr(m, "processor")}
    assert all(after[name] is processor for name, processor in before.items())
    assert torch.equal(row.run(transformer), expected)


def test_full_selection_equals_dense_and_half_does_not(row, transformer) -> None:
    expected = row.run(transformer)
    with dit_accel.enable_sparse_attention(transformer, SVG2(top_p=1.0), schedule=EVERYWHERE) as s:
        found = row.run(transformer)
        report = s.report()
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())
    assert report.calls == {"dense": 0, "sparse": row.layers, "fallback": 0}, report.fallbacks
    with dit_accel.enable_sparse_attention(
        transformer, Neighborhood(density=0.3, tile=(1, 2, 2)), schedule=EVERYWHERE
    ) as s:
        half = row.run(transformer)
        report = s.report()
    assert torch.isfinite(half).all()
    assert not torch.allclose(half, expected, atol=1e-3 * expected.abs().max().item())
    assert report.calls == {"dense": 0, "sparse": row.layers, "fallback": 0}, report.fallbacks
    assert 0.2 < report.density["sparse_calls"] < 0.9


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_touched_patch_is_the_token_at_its_place(row, transformer, place) -> None:
    place = tuple(min(p, size - 1) for p, size in zip(place, row.grid, strict=True))
    before = first_layer(row, transformer, row.inputs())
    inputs = row.inputs()
    row.touch(inputs, 1, place)
    after = first_layer(row, transformer, inputs)
    layout = after[1].layout
    assert (layout.frames, layout.height, layout.width) == row.grid
    text = layout.text_tokens if layout.text_first else 0
    index = text + (place[0] * row.grid[1] + place[1]) * row.grid[2] + place[2]
    change = changed_tokens(before[1], after[1])
    assert change.argmax() == index
    others = change[torch.arange(len(change)) != index]
    assert others.max() < 0.5  # a refiner before the first layer may have spread it
    assert torch.equal(before[0].value, after[0].value)


def test_text_is_where_the_layout_says(row, transformer) -> None:
    calls = first_layer(row, transformer, row.inputs())
    assert tuple(c.layout.text_tokens for c in calls) == (row.text or (0,) * BATCH)
    if not row.text:
        return
    for token in (0, row.text[1] - 1):
        inputs = row.inputs()
        row.touch_text(inputs, 1, token)
        after = first_layer(row, transformer, inputs)[1]
        index = token if after.layout.text_first else after.layout.visual_tokens + token
        assert changed_tokens(calls[1], after).argmax() == index


def test_neighborhood_knows_the_geometry_and_leaves_text_dense(row, transformer) -> None:
    """Keys permuted within a frame: only queries that see a part of that frame notice."""
    method, ops = Neighborhood(density=0.3, tile=(1, 2, 2)), Ops(Timer())
    call = first_layer(row, transformer, row.inputs())[1]
    plan = method.plan(call, method.new_state(), ops)
    out = method.attend(call, method.new_state(), ops).out
    layout, tokens = call.layout, call.tokens
    start = layout.text_tokens if layout.text_first else 0
    per_frame = layout.height * layout.width
    order = torch.arange(tokens)
    frame = slice(start + (layout.frames - 1) * per_frame, start + layout.visual_tokens)
    order[frame] = order[frame].flip(0)
    moved = replace(call, key=call.key[:, order], value=call.value[:, order])
    change = (method.attend(moved, method.new_state(), ops).out - out).abs().amax((0, 3))  # [S, H]
    seen = plan.block_map.to_mask()[0][:, :, frame]  # [H, S, frame]
    parts = (seen.any(-1) & ~seen.all(-1)).T
    assert not (change[~parts] > 1e-5).any()
    assert parts.any()
    assert (change[parts] > 1e-6).float().mean() > 0.9
    exact = exact_attention(call)
    text = slice(0, start) if layout.text_first else slice(layout.visual_tokens, None)
    if layout.text_tokens:
        assert torch.allclose(out[:, text], exact[:, text], atol=1e-5)
    assert not torch.allclose(out, exact, atol=1e-4)
