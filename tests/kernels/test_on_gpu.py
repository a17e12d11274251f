"""Test doctor, methods and a pipeline on a CUDA device."""

import pytest
import torch

from dit_accel import (
    SVG,
    SVG2,
    AttentionCall,
    Band,
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
from dit_accel.core.attention_call import CallContext
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.doctor import check_ops
from dit_accel_pipelines import TokenLayout

pytestmark = pytest.mark.gpu


def test_doctor_finds_every_op_usable() -> None:
    for line, verdict in check_ops("cuda").items():
        assert verdict.startswith("usable"), f"{line}: {verdict}"


METHODS = (
    SVG2(top_p=0.5),
    SVGEar(),
    SVGEar(selection="error", budget="top_p", skipped="centroid"),
    SVGEar(density=(0.1, 0.2, 0.3), selection="error"),
    ReTtention(),
    ReTtention(mode="paper", mask="svg-ear"),
    SVG(),
    XAttention(),
    PermutedBlocks(),
    SpargeAttn(),
    SpargeAttn(top_k=0.5, order="hilbert"),
    TopKBlocks(),
    TopKBlocks(tile=(4, 4, 4)),
    Neighborhood(),
    Radial(),
    Band(),
    RasterWindow(),
)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("precision", ["full", "int8"])
def test_planning_and_attention_never_wait_for_the_device(precision, method) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 2000, 3, 64, generator=generator).cuda() for _ in range(3)]
    layout = TokenLayout(8, 10, 25)
    call = AttentionCall(
        query=tensors[0],
        key=tensors[1],
        value=tensors[2],
        scale=0.125,
        context=CallContext(num_steps=1),
        layout=layout,
        precision=precision,
    )
    ops, state = Ops(Timer()), method.new_state()
    # The first call compiles.
    method.attend(call, state, ops)
    torch.cuda.set_sync_debug_mode("error")
    try:
        method.attend(call, state, ops)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_pipeline_with_full_selection_equals_dense(wan, run_wan) -> None:
    pipe = wan.to("cuda")
    expected = run_wan(pipe)
    pipe.enable_sparse_attention(SVG2(top_p=1.0), schedule=Schedule(dense_steps=0, min_tokens=0))
    torch.testing.assert_close(run_wan(pipe), expected, rtol=0, atol=2e-2)
    assert pipe.attention_report().calls["sparse"] == 24
