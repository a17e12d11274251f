"""Controls spend what svg2 spends, elsewhere."""

import pytest
import torch

from dit_accel import SVG2, AttentionCall
from dit_accel.core.attention_call import CallContext
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_eval.controls import (
    CONTROLS,
    OracleBlocks,
    OtherBackend,
    RoundedAttention,
    keys_per_query_group,
    true_mass,
)
from dit_accel_pipelines import TokenLayout

BASE = SVG2(query_clusters=24, key_clusters=40, top_p=0.6, min_key_share=0.0)


def clustered_call(tokens: int = 240, seed: int = 0) -> AttentionCall:
    """Queries and keys around shared centres, so that clusters mean something."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(12, 16, generator=generator)
    member = torch.randint(0, 12, (tokens,), generator=generator)
    noise = [0.4 * torch.randn(1, tokens, 2, 16, generator=generator) for _ in range(3)]
    query, key, value = (centres[member][None, :, None] + n for n in noise)
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        scale=0.25,
        context=CallContext(num_steps=1),
        layout=TokenLayout(1, 1, tokens),
    )


def attend(method, call: AttentionCall):
    ops = Ops(Timer())
    plan = method.plan(call, method.new_state(), ops)
    return plan.block_map, ops.run(plan, call)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.name)
def test_density_is_that_of_svg2(control) -> None:
    call = clustered_call()
    expected, _ = attend(BASE, call)
    block_map, out = attend(control(base=BASE), call)
    assert torch.isfinite(out).all()
    assert float(block_map.density()) == pytest.approx(float(expected.density()), abs=0.03)
    again, _ = attend(control(base=BASE), call)
    assert torch.equal(block_map.to_mask(), again.to_mask())


def test_svg2_beats_the_controls_on_clustered_attention_and_not_the_oracle() -> None:
    call = clustered_call()
    query, key, value = (t.transpose(1, 2) for t in (call.query, call.key, call.value))
    exact = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.25)
    error = {}
    for method in (BASE, *(c(base=BASE) for c in CONTROLS)):
        _, out = attend(method, call)
        error[method.name] = float((out - exact.transpose(1, 2)).norm())
    assert error["oracle-blocks"] <= error["svg2"] * 1.05
    assert error["svg2"] < 0.5 * min(
        v for k, v in error.items() if k not in ("svg2", "oracle-blocks")
    )


def test_true_mass_is_the_sum_over_the_blocks() -> None:
    call = clustered_call(60)
    block_map, _ = attend(BASE, call)
    query, key = call.query.transpose(1, 2), call.key.transpose(1, 2)
    weights = (0.25 * query @ key.transpose(-1, -2)).softmax(-1)
    mass = true_mass(call, block_map)
    rows = block_map.query_order[0, 1][
        block_map.query_offsets[0, 1, 2] : block_map.query_offsets[0, 1, 3]
    ]
    keys = block_map.key_order[0, 1][
        block_map.key_offsets[0, 1, 4] : block_map.key_offsets[0, 1, 5]
    ]
    torch.testing.assert_close(mass[0, 1, 2, 4], weights[0, 1][rows][:, keys].sum())
    torch.testing.assert_close(mass.sum((2, 3)), torch.full((1, 2), 60.0))


def test_oracle_spends_at_most_a_cluster_more() -> None:
    call = clustered_call()
    expected, _ = attend(BASE, call)
    block_map, _ = attend(OracleBlocks(base=BASE), call)
    over = keys_per_query_group(block_map) - keys_per_query_group(expected)
    assert over.abs().max() <= block_map.key_offsets.diff(dim=-1).max()


@pytest.mark.parametrize(
    ("floor", "least", "most"),
    [(OtherBackend(), 0.0, 1e-5), (RoundedAttention(), 1e-4, 3e-2)],
    ids=str,
)
def test_floors_are_dense_but_for_rounding(floor, least: float, most: float) -> None:
    call = clustered_call()
    heads_first = (t.transpose(1, 2) for t in (call.query, call.key, call.value))
    exact = torch.nn.functional.scaled_dot_product_attention(*heads_first, scale=call.scale)
    attended = floor.attend(call, None, Ops(Timer()))
    error = float((attended.out - exact.transpose(1, 2)).abs().max())
    assert least < error < most
    assert attended.density == 1
