"""Controls compute as much as the method they control, in another way."""

from dataclasses import replace

import pytest
import torch
from support.attention_inputs import at_step, attention_call, exact_attention

from dit_accel import SVG2, AttentionCall, ReTtention
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_pipelines import TokenLayout
from studies.controls import CachedDifference, density_controls

BASE = SVG2(query_clusters=24, key_clusters=40, top_p=0.6, min_key_share=0.0)


def attend(method, call: AttentionCall):
    ops = Ops(Timer())
    plan = method.plan(call, method.new_state(), ops)
    return plan.block_map, ops.run(plan, call)


@pytest.mark.parametrize("control", density_controls(BASE), ids=lambda c: c.name)
def test_controls_have_the_density_of_svg2(control) -> None:
    call = attention_call(TokenLayout(1, 1, 240))
    expected, _ = attend(BASE, call)
    block_map, out = attend(control, call)
    assert torch.isfinite(out).all()
    assert float(block_map.density()) == pytest.approx(float(expected.density()), abs=0.03)
    again, _ = attend(control, call)
    assert torch.equal(block_map.to_mask(), again.to_mask())


def test_svg2_beats_all_controls_except_the_oracle() -> None:
    call = attention_call(TokenLayout(1, 1, 240))
    exact, errors = exact_attention(call), {}
    for method in (BASE, *density_controls(BASE)):
        _, out = attend(method, call)
        errors[method.name] = float((out - exact).norm())
    oracle, svg2 = errors.pop("oracle-blocks"), errors.pop("svg2")
    assert oracle <= svg2 * 1.05
    assert svg2 < 0.5 * min(errors.values())


@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_cached_difference_follows_its_rule(drift: float) -> None:
    """The output is O_sparse + (O_full - O_sparse) of the last full step."""
    method, ops = CachedDifference(density=0.2), Ops(Timer())
    call, noise = attention_call(TokenLayout(6, 4, 4)), attention_call(TokenLayout(6, 4, 4), seed=1)
    moved = replace(at_step(call, 1), query=call.query + drift * noise.query)
    state = method.new_state()
    full, sparse = method.attend(call, state, ops), method.attend(moved, state, ops)
    assert full is not None
    assert sparse is not None
    torch.testing.assert_close(full.out, exact_attention(call), rtol=0, atol=1e-5)
    mask = method.inner.plan(call, method.inner.new_state(), ops)
    old, new = (ops.run(mask, c) for c in (call, moved))
    torch.testing.assert_close(sparse.out, new + exact_attention(call) - old, rtol=0, atol=1e-5)


def test_knobs_turn_re_ttention_into_its_controls() -> None:
    call = attention_call(TokenLayout(6, 4, 4))
    later = replace(at_step(call, 1), value=2 * call.value)

    def two_steps(**knobs: float):
        method, ops = ReTtention(**knobs), Ops(Timer())
        state = method.new_state()
        full, sparse = method.attend(call, state, ops), method.attend(later, state, ops)
        return method, ops, full, sparse

    _, _, full, sparse = two_steps(reuse_below=1.0)
    assert torch.equal(sparse.out, full.out)
    method, ops, _, sparse = two_steps(density=0.2, local_above=0.0)
    mask = method.inner.plan(later, method.inner.new_state(), ops)
    torch.testing.assert_close(sparse.out, ops.run(mask, later), rtol=0, atol=1e-6)
