"""Methods under another default dtype or default device of torch: the call alone decides both."""

import dataclasses

import pytest
import torch
from support.attention_inputs import at_step, attention_call

from dit_accel import (
    METHODS,
    SVG,
    SVG2,
    Band,
    Dense,
    Method,
    Neighborhood,
    PermutedBlocks,
    Radial,
    RasterWindow,
    ReTtention,
    Schedule,
    SpargeAttn,
    SVGEar,
    TopKBlocks,
    XAttention,
)
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_pipelines import TokenLayout

# Default dtype, dtype of the call, precision of the call.
CALLS = (
    (torch.bfloat16, torch.float32, "full"),
    (torch.float16, torch.bfloat16, "int8"),
    (torch.float64, torch.float16, "full"),
)
METHODS_TRIED: tuple[Method, ...] = (
    SVG2(top_p=0.4),
    SVGEar(density=0.2),
    SVGEar(selection="error", budget="top_p", gamma=0.5),
    SVGEar(density=(0.1, 0.2, 0.3), selection="error", skipped="centroid"),
    ReTtention(density=0.3),
    ReTtention(density=0.3, mode="paper", mask="svg"),
    ReTtention(density=0.3, local_above=0.4, reuse_below=0.3),
    ReTtention(reuse_below=1.0),
    SVG(density=0.3, block=16),
    XAttention(threshold=0.6, block=16, stride=4),
    PermutedBlocks(top_p=0.6, block=16),
    SpargeAttn(cdf_threshold=0.5, query_block=16, key_block=8, order="hilbert"),
    SpargeAttn(top_k=0.3, query_block=16, key_block=8),
    TopKBlocks(density=0.3, block=8),
    TopKBlocks(density=0.3, tile=(2, 2, 2)),
    Neighborhood(density=0.3, tile=(2, 2, 2)),
    Radial(decay=0.01, block=4),
    Radial(decay=0.01, block=4, rule="columns"),
    Band(density=0.3, block=8),
    RasterWindow(window=0.3),
    SVG2(top_p=0.4, init="random"),
    SVG(density=0.3, block=16, window="published"),
    XAttention(threshold=(0.3, 0.6, 0.9), block=16, stride=4, keep_sink=True, keep_recent=True),
    PermutedBlocks(top_p=0.4, block=8, segment=16),
    Neighborhood(window=((1, 3, 3), (3, 1, 3), (3, 3, 1)), tile=(2, 2, 2)),
)


def run(method: Method, call) -> list[torch.Tensor]:
    state, ops = method.new_state(), Ops(Timer())
    found: list[torch.Tensor] = []
    for step in range(3):
        attended = method.attend(at_step(call, step), state, ops)
        assert attended is not None
        found += [attended.out, attended.density]
    return found


def call_of(dtype: torch.dtype, precision: str):
    call = attention_call(TokenLayout(5, 7, 3, 4, True))
    tensors = {n: getattr(call, n).to(dtype) for n in ("query", "key", "value")}
    return dataclasses.replace(call, precision=precision, **tensors)


def label(method: Method) -> str:
    return f"{method.name}-{METHODS_TRIED.index(method)}"


def test_every_method_is_tried() -> None:
    assert {m.name for m in METHODS_TRIED} == set(METHODS) - {Dense.name}


@pytest.mark.parametrize(("default", "dtype", "precision"), CALLS, ids=str)
@pytest.mark.parametrize("method", METHODS_TRIED, ids=label)
def test_the_default_dtype_changes_nothing(
    method: Method, default: torch.dtype, dtype: torch.dtype, precision: str
) -> None:
    call = call_of(dtype, precision)
    expected = run(method, call)
    try:
        torch.set_default_dtype(default)
        found = run(method, call)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", METHODS_TRIED, ids=label)
def test_the_default_device_changes_nothing(method: Method) -> None:
    call = call_of(torch.float32, "full")
    expected = run(method, call)
    with torch.device("meta"):
        found = run(method, call)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
def test_a_budget_of_keys_is_not_rounded(default: torch.dtype) -> None:
    """In bfloat16, 1,003 keys would be 1,000."""
    score = torch.arange(1100, dtype=torch.float32).expand(1, 2, 3, 1100)
    sizes = torch.ones(1, 2, 1100, dtype=torch.int64)
    try:
        torch.set_default_dtype(default)
        selected = Ops(Timer()).select_budget(score, sizes, 1003.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (selected.sum(-1) == 1003).all()


ALWAYS = Schedule(dense_steps=0, min_tokens=0)


@pytest.mark.parametrize("method", ["svg-ear", "re-ttention", "svg"])
def test_float64_falls_back_with_a_reason(wan, run_wan, method: str) -> None:
    wan.transformer.double()
    expected = run_wan(wan)
    wan.enable_sparse_attention(method, schedule=ALWAYS, guard="on")
    assert torch.equal(run_wan(wan), expected)
    report = wan.attention_report()
    assert report.calls == {"dense": 0, "sparse": 0, "fallback": 24}
    assert list(report.fallbacks) == [
        "attention in another dtype than float32, bfloat16 and float16"
    ]


@pytest.mark.parametrize("method", ["svg-ear", "re-ttention", "svg"])
def test_a_run_under_another_default_dtype_is_the_same(wan, run_wan, method: str) -> None:
    wan.enable_sparse_attention(method, schedule=ALWAYS)
    expected = run_wan(wan)
    try:
        torch.set_default_dtype(torch.float16)
        found = run_wan(wan)
    finally:
        torch.set_default_dtype(torch.float32)
    assert wan.attention_report().calls["sparse"] == 24
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)
