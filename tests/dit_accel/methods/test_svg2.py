"""When svg2 plans anew, and what it selects."""

import dataclasses

import pytest
import torch
from support.attention_inputs import attention_call

from dit_accel import SVG2, Schedule
from dit_accel.core import ops
from dit_accel.core.timer import Timer
from dit_accel_pipelines import TokenLayout

EVERYWHERE = Schedule(dense_steps=0.0, min_tokens=0)
LAYERS, BRANCHES, TENSORS, STEPS = 3, 2, 2, 4


def coarse(refresh: int) -> SVG2:
    return SVG2(query_clusters=4, key_clusters=8, top_p=0.7, min_key_share=0.2, refresh=refresh)


@pytest.mark.parametrize(("refresh", "plans"), [(1, 4), (2, 2), (3, 2), (9, 1)])
def test_a_plan_serves_so_many_steps(wan, run_wan, monkeypatch, refresh: int, plans: int) -> None:
    made = []
    kmeans = ops.kmeans_groups
    monkeypatch.setattr(ops, "kmeans_groups", lambda *a: made.append(a) or kmeans(*a))
    wan.enable_sparse_attention(coarse(refresh), schedule=EVERYWHERE)
    first = run_wan(wan)
    assert len(made) == plans * LAYERS * BRANCHES * TENSORS
    assert wan.attention_report().calls["sparse"] == STEPS * LAYERS * BRANCHES
    assert torch.equal(run_wan(wan), first), "the next run starts with a plan of its own"
    assert len(made) == 2 * plans * LAYERS * BRANCHES * TENSORS


def test_refresh_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="refresh must be at least 1, got 0"):
        SVG2(refresh=0)


@pytest.mark.parametrize("peak", [1, 4, 1e3], ids=str)
def test_the_share_of_key_clusters_is_kept_however_peaked_attention_is(peak: float) -> None:
    call = attention_call(TokenLayout(9, 12, 9))
    call = dataclasses.replace(call, query=20 * peak * call.query)
    method = SVG2(key_clusters=61, top_p=0.5, min_key_share=0.5)
    plan = method.plan(call, method.new_state(), ops.Ops(Timer()))
    block_map = plan.block_map
    kept = block_map.selected.sum(-1)
    filled = (block_map.key_offsets.diff(dim=-1) > 0).sum(-1, keepdim=True)
    assert (kept >= filled.clamp(max=30)).all(), f"{int(kept.min())} of 61 clusters are kept"
