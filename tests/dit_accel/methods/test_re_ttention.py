"""Re-ttention: full steps are exact, both modes agree where they must, and drift is followed."""

import dataclasses

import pytest
import torch
from support.attention_inputs import at_step, attention_call, exact_attention

from dit_accel import RasterWindow, ReTtention, Schedule, SVGEar
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_pipelines import TokenLayout

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
LAYOUT = TokenLayout(6, 4, 4)
MASKS = ["neighborhood", "band", "svg-ear", SVGEar(density=0.1), RasterWindow(window=0.2)]

PAPER = {"mode": "paper", "lam": 0.0}


def with_mask(mask, **knobs) -> ReTtention:
    """A mask that is a name takes the density, and one with knobs of its own does not."""
    density = {"density": 0.2} if isinstance(mask, str) else {}
    return ReTtention(mask=mask, **density, **knobs)


def steps(method: ReTtention, drift: float, count: int = 3):
    """Calls whose queries and keys drift, with the method's output and density at each."""
    ops, state, found = Ops(Timer()), method.new_state(), []
    call, noise = attention_call(LAYOUT), attention_call(LAYOUT, seed=1)
    for step in range(count):
        moved = dataclasses.replace(
            at_step(call, step),
            query=call.query + drift * step * noise.query,
            key=call.key + drift * step * noise.key,
            value=call.value + drift * step * noise.value,
        )
        attended = method.attend(moved, state, ops)
        assert attended is not None
        found.append((moved, attended.out, float(attended.density)))
    return found


@pytest.mark.parametrize("knobs", [{}, PAPER], ids=["merge", "paper"])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_full_step_equals_dense_and_zero_drift_keeps_it(mask, knobs: dict) -> None:
    method = with_mask(mask, **knobs)
    (_, _, first), *rest = found = steps(method, drift=0.0)
    for call, out, _ in found:
        torch.testing.assert_close(out, exact_attention(call), rtol=0, atol=1e-5)
    assert first == 1.0
    assert all(density < 0.4 for _, _, density in rest)


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_paper_without_lambda_equals_merge_without_beta(mask) -> None:
    paper = steps(with_mask(mask, **PAPER), drift=0.2)
    merge = steps(with_mask(mask, beta=0.0), drift=0.2)
    for (_, one, _), (_, other, _) in zip(paper, merge, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_paper_is_the_published_rule() -> None:
    """rho softmax(masked) V + R, with rho growing by lambda, written with explicit attention maps."""
    method = ReTtention(mode="paper", mask="band", density=0.2, lam=0.04)
    (first, _, _), *rest = steps(method, drift=0.1)
    plan = method.inner.plan(first, method.inner.new_state(), Ops(Timer()))
    assert plan is not None
    mask = plan.block_map.to_mask()

    def parts(call):
        query, key, value = (t.transpose(1, 2) for t in (call.query, call.key, call.value))
        scores = call.scale * query @ key.transpose(-1, -2)
        return scores, scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value, value

    scores, sparse, value = parts(first)
    rho = (scores.softmax(-1) * mask).sum(-1, keepdim=True)
    residual = scores.softmax(-1) @ value - rho * sparse
    for use, (call, out, _) in enumerate(rest):
        expected = (rho + 0.04 * use) * parts(call)[1] + residual
        torch.testing.assert_close(out.transpose(1, 2), expected, rtol=0, atol=1e-5)


def test_the_fresh_weight_follows_drift_better() -> None:
    errors = {}
    for beta in (0.0, 1.0):
        found = steps(ReTtention(mask="svg-ear", density=0.3, beta=beta), drift=0.1)
        errors[beta] = sum(float((out - exact_attention(call)).norm()) for call, out, _ in found)
    assert errors[1.0] < errors[0.0]


@pytest.mark.parametrize(
    ("local_above", "reuse_below"), [(0.0, 0.0), (1.0, 1.0), (0.4, 0.0), (0.6, 0.35)], ids=str
)
def test_policy_of_heads_keeps_full_steps_exact(local_above: float, reuse_below: float) -> None:
    density = {"density": 0.2} if reuse_below < 1 else {}
    method = ReTtention(local_above=local_above, reuse_below=reuse_below, **density)
    (call, out, _), (again, kept, density) = steps(method, drift=0.0, count=2)
    torch.testing.assert_close(out, exact_attention(call), rtol=0, atol=1e-5)
    assert kept.isfinite().all()
    if reuse_below == 1.0:
        assert density == 0.0
        assert torch.equal(kept, out)
    if local_above == 0.0:
        torch.testing.assert_close(
            kept,
            Ops(Timer()).run(
                method.inner.plan(again, method.inner.new_state(), Ops(Timer())), again
            ),
        )


def test_heads_that_all_repeat_need_no_mask_and_keep_their_own_memory() -> None:
    method = ReTtention(mask="neighborhood", reuse_below=1.0)
    assert not method.needs_grid
    ops, state, call = Ops(Timer()), method.new_state(), attention_call(LAYOUT)
    for step in range(3):
        attended = method.attend(at_step(call, step), state, ops)
        assert attended is not None
        torch.testing.assert_close(attended.out, exact_attention(call), rtol=0, atol=1e-5)
        attended.out.fill_(torch.nan)  # a model may write there
    assert ReTtention(mask="neighborhood", reuse_below=1.0, local_above=0.5).needs_grid


@pytest.mark.parametrize("precision", ["int8", "int8-fp8"])
def test_heads_that_all_repeat_do_so_in_the_precision_asked_for(precision: str) -> None:
    method, ops = ReTtention(reuse_below=1.0), Ops(Timer())
    call = dataclasses.replace(attention_call(LAYOUT), precision=precision)
    attended = method.attend(call, method.new_state(), ops)
    assert attended is not None
    expected = ops.quantized(call.query, call.key, call.value, call.scale, precision)
    torch.testing.assert_close(attended.out, expected, rtol=0, atol=0)
    assert not torch.allclose(attended.out, exact_attention(call), rtol=0, atol=1e-5)


def test_full_steps_come_as_often_as_asked(wan, run_wan) -> None:
    wan.enable_sparse_attention(ReTtention(density=0.3, refresh=2), schedule=ALWAYS)
    run_wan(wan)
    report = wan.attention_report()
    # of 4 steps two are full: half the calls at density 1
    masked = (report.density["sparse_calls"] - 0.5) * 2
    assert 0.2 < masked < 0.45
    assert report.plans["reused"] > 0


def test_a_mask_that_needs_the_grid_needs_it() -> None:
    assert ReTtention().needs_grid
    assert ReTtention(mask="band").needs_grid
    assert not ReTtention(mask="svg-ear").needs_grid


@pytest.mark.parametrize("knobs", [{}, PAPER], ids=["merge", "paper"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_mask_of_single_tokens_keeps_half_precision(knobs: dict, dtype: torch.dtype) -> None:
    """The rest is a difference there, and it is nothing but rounding in rows of text."""
    call = attention_call(TokenLayout(2, 6, 8, 5, text_first=True))
    tensors = {name: getattr(call, name).to(dtype) for name in ("query", "key", "value")}
    call = dataclasses.replace(call, **tensors)
    method = ReTtention(mask="raster-window", **knobs)
    ops, state = Ops(Timer()), method.new_state()
    exact = exact_attention(dataclasses.replace(call, **{n: t.float() for n, t in tensors.items()}))
    for step in range(3):
        attended = method.attend(at_step(call, step), state, ops)
        assert attended is not None
        error = (attended.out.float() - exact).norm() / exact.norm()
        assert error < {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}[dtype]
