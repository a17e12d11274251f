"""Test every family on a tiny random transformer: its hooks, its layout, and sparse attention."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from support.attention_inputs import exact_attention
from support.tiny_transformers import ROWS
from support.tiny_transformers.base import TinyTransformer
from support.tiny_transformers.inputs import BATCH
from torch import Tensor, nn

import dit_accel
from dit_accel import SVG2, Neighborhood, Schedule
from dit_accel.core.attention_call import AttentionCall
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.methods.base import Attended, Method
from dit_accel_pipelines import families

ALL_SPARSE = Schedule(dense_steps=0.0, min_tokens=0)
POSITIONS = [(0, 0, 0), (1, 2, 3), (2, 3, 5)]


@dataclass(frozen=True, kw_only=True)
class Spy(Method):
    """Exact attention that records its calls."""

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


def record_first_layer(
    row: TinyTransformer, transformer: nn.Module, inputs: Any
) -> list[AttentionCall]:
    """Return the calls of the first layer, one per sample."""
    spy = Spy()
    with dit_accel.enable_sparse_attention(transformer, spy, schedule=ALL_SPARSE):
        row.run(transformer, inputs)
    calls = [call for call in spy.calls if call.context.layer == 0]
    if len(calls) == 1:
        return [select_sample(calls[0], i) for i in range(BATCH)]
    assert len(calls) == BATCH
    return calls


def select_sample(call: AttentionCall, sample: int) -> AttentionCall:
    """Return the call of one sample."""
    tensors = {n: getattr(call, n)[sample : sample + 1] for n in ("query", "key", "value")}
    return replace(call, **tensors)


def measure_change(before: AttentionCall, after: AttentionCall) -> Tensor:
    """Return how much the value of each token changed, as a share of the largest change."""
    change = (after.value - before.value).abs().amax((0, 2, 3))
    return change / change.max().clamp(min=1e-20)


def test_every_tested_family_has_a_row() -> None:
    rows = {row.family for row in ROWS}
    for family in families():
        is_installed = any(hasattr(diffusers, name) for name in family.transformers)
        assert family.name in rows or not is_installed or family.status == "declared"


def test_dense_is_bit_equal_and_closing_restores_processors(row, transformer) -> None:
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


def test_full_selection_equals_dense_and_a_part_does_not(row, transformer) -> None:
    expected = row.run(transformer)
    with dit_accel.enable_sparse_attention(transformer, SVG2(top_p=1.0), schedule=ALL_SPARSE) as s:
        full = row.run(transformer)
        report = s.report()
    assert torch.allclose(full, expected, atol=1e-5 * expected.abs().max().item())
    assert report.calls == {"dense": 0, "sparse": row.layers, "fallback": 0}, report.fallbacks
    with dit_accel.enable_sparse_attention(
        transformer, Neighborhood(density=0.3, tile=(1, 2, 2)), schedule=ALL_SPARSE
    ) as s:
        part = row.run(transformer)
        report = s.report()
    assert torch.isfinite(part).all()
    assert not torch.allclose(part, expected, atol=1e-3 * expected.abs().max().item())
    assert report.calls == {"dense": 0, "sparse": row.layers, "fallback": 0}, report.fallbacks
    assert 0.2 < report.density["sparse_calls"] < 0.9


@pytest.mark.parametrize("position", POSITIONS, ids=str)
def test_layout_gives_the_position_of_a_changed_token(row, transformer, position) -> None:
    frame, line, column = (min(p, n - 1) for p, n in zip(position, row.grid, strict=True))
    before = record_first_layer(row, transformer, row.inputs())
    inputs = row.inputs()
    row.touch(inputs, 1, (frame, line, column))
    after = record_first_layer(row, transformer, inputs)
    layout = after[1].layout
    assert (layout.frames, layout.height, layout.width) == row.grid
    text = layout.text_tokens if layout.text_first else 0
    index = text + (frame * row.grid[1] + line) * row.grid[2] + column
    change = measure_change(before[1], after[1])
    assert change.argmax() == index
    others = change[torch.arange(len(change)) != index]
    # A refiner before the first layer may spread the change.
    assert others.max() < 0.5
    assert torch.equal(before[0].value, after[0].value)


def test_layout_gives_the_position_of_changed_text(row, transformer) -> None:
    calls = record_first_layer(row, transformer, row.inputs())
    assert tuple(c.layout.text_tokens for c in calls) == (row.text or (0,) * BATCH)
    if not row.text:
        return
    for token in (0, row.text[1] - 1):
        inputs = row.inputs()
        row.touch_text(inputs, 1, token)
        after = record_first_layer(row, transformer, inputs)[1]
        index = token if after.layout.text_first else after.layout.visual_tokens + token
        assert measure_change(calls[1], after).argmax() == index


def test_neighborhood_follows_the_grid_and_keeps_text_dense(row, transformer) -> None:
    """Permute the keys of a frame: only queries that see a part of this frame change."""
    method, ops = Neighborhood(window=(99, 1, 1), tile=(1, 2, 2)), Ops(Timer())
    call = record_first_layer(row, transformer, row.inputs())[1]
    plan = method.plan(call, method.new_state(), ops)
    out = method.attend(call, method.new_state(), ops).out
    layout, tokens = call.layout, call.tokens
    start = layout.text_tokens if layout.text_first else 0
    per_frame = layout.height * layout.width
    order = torch.arange(tokens)
    frame = slice(start + (layout.frames - 1) * per_frame, start + layout.visual_tokens)
    order[frame] = order[frame].roll(1)  # no window is mapped to itself
    permuted = replace(call, key=call.key[:, order], value=call.value[:, order])
    change = (method.attend(permuted, method.new_state(), ops).out - out).abs()
    change = change.amax((0, 3))  # [S, H]
    visible = plan.block_map.to_mask()[0][:, :, frame]  # [H, S, frame]
    sees_part = (visible.any(-1) & ~visible.all(-1)).T
    assert not (change[~sees_part] > 1e-5).any()
    assert sees_part.any()
    assert (change[sees_part] > 1e-6).float().mean() > 0.9
    exact = exact_attention(call)
    text = slice(0, start) if layout.text_first else slice(layout.visual_tokens, None)
    if layout.text_tokens:
        assert torch.allclose(out[:, text], exact[:, text], atol=1e-5)
    assert not torch.allclose(out, exact, atol=1e-4)
