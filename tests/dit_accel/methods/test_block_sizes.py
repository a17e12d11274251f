"""Blocks of every size, from one token to more than the sequence has."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import attention_call, exact_attention

from dit_accel import (
    SVG,
    SVG2,
    Band,
    Method,
    Neighborhood,
    PermutedBlocks,
    Radial,
    ReTtention,
    SpargeAttn,
    SVGEar,
    TopKBlocks,
    XAttention,
)
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.methods.base import Attended
from dit_accel_pipelines import TokenLayout

SIZES = st.sampled_from([1, 2, 3, 5, 8, 16, 17, 64, 100, 128, 4096, 10**9, 10**18])
LAYOUTS = st.builds(
    TokenLayout,
    frames=st.integers(1, 6),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    text_tokens=st.integers(0, 9),
    text_first=st.booleans(),
)
FULL: dict[str, Callable[[int], Method]] = {
    "svg": lambda size: SVG(density=1.0, block=size, samples=size),
    "svg, no first frame": lambda size: SVG(density=1.0, block=size, first_frame=False),
    "xattention": lambda size: XAttention(threshold=1.0, block=size, stride=size),
    "xattention, runs": lambda size: XAttention(threshold=1.0, block=4 * size, stride=4),
    "permuted-blocks": lambda size: PermutedBlocks(top_p=1.0, block=size, samples=size),
    "sparge-attn": lambda size: SpargeAttn(
        cdf_threshold=1.0, query_block=2 * size, key_block=size, order="hilbert"
    ),
    "topk-blocks": lambda size: TopKBlocks(density=1.0, block=size),
    "topk-blocks, tiles": lambda size: TopKBlocks(density=1.0, tile=(size, size, size)),
    "neighborhood": lambda size: Neighborhood(density=1.0, tile=(size, size, size)),
    "neighborhood, window": lambda size: Neighborhood(window=(size, size, size), tile=(6, 6, 6)),
    "radial": lambda size: Radial(decay=1e9, block=size),
    "band": lambda size: Band(density=1.0, block=size),
    "svg2": lambda size: SVG2(top_p=1.0, query_clusters=size, key_clusters=size),
    "svg-ear": lambda size: SVGEar(density=1.0, query_clusters=size, key_clusters=size),
    "re-ttention": lambda size: ReTtention(mask=Band(density=1.0, block=size)),
}
SPARSE: dict[str, Callable[[int], Method]] = {
    "svg": lambda size: SVG(density=0.3, block=size),
    "xattention": lambda size: XAttention(threshold=0.5, block=4 * size, stride=4),
    "xattention, squares": lambda size: XAttention(threshold=0.5, block=size, stride=size),
    "permuted-blocks": lambda size: PermutedBlocks(top_p=0.5, block=size, samples=size),
    "sparge-attn": lambda size: SpargeAttn(
        cdf_threshold=0.5, query_block=2 * size, key_block=size, order="hilbert"
    ),
    "sparge-attn, top k": lambda size: SpargeAttn(top_k=0.3, query_block=size, key_block=size),
    "topk-blocks": lambda size: TopKBlocks(density=0.3, block=size),
    "topk-blocks, tiles": lambda size: TopKBlocks(density=0.3, tile=(size, size, size)),
    "neighborhood": lambda size: Neighborhood(density=0.3, tile=(size, size, size)),
    "radial": lambda size: Radial(decay=0.2, block=size),
    "band": lambda size: Band(density=0.3, block=size),
}


def attend(method: Method, call) -> Attended:
    found = method.attend(call, method.new_state(), Ops(Timer()))
    assert found is not None
    return found


@pytest.mark.parametrize("name", FULL)
@given(size=SIZES, layout=LAYOUTS)
@settings(max_examples=25, deadline=None)
def test_full_selection_is_dense_with_blocks_of_any_size(
    name: str, size: int, layout: TokenLayout
) -> None:
    call = attention_call(layout)
    out, density = attend(FULL[name](size), call)
    assert float(density) == pytest.approx(1.0)
    torch.testing.assert_close(out, exact_attention(call), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SPARSE)
@given(size=SIZES, layout=LAYOUTS)
@settings(max_examples=15, deadline=None)
def test_each_query_has_keys_with_blocks_of_any_size(
    name: str, size: int, layout: TokenLayout
) -> None:
    method, call = SPARSE[name](size), attention_call(layout)
    plan = method.plan(call, method.new_state(), Ops(Timer()))
    assert plan is not None
    assert plan.block_map.to_mask().any(-1).all()
    assert attend(method, call).out.isfinite().all()


def test_radial_keeps_all_pairs_if_the_band_is_wide_enough() -> None:
    call = attention_call(TokenLayout(10, 8, 18, 17, True))
    for block in (16, 64, 100, 144, 145, 4096):
        assert float(attend(Radial(decay=1e6, block=block), call).density) == pytest.approx(1.0)


def test_a_block_above_the_frame_is_the_frame() -> None:
    call = attention_call(TokenLayout(6, 4, 5))
    densities = {float(attend(Radial(decay=0.5, block=b), call).density) for b in (20, 21, 4096)}
    assert len(densities) == 1
