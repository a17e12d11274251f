"""When svg2 plans anew."""

import pytest
import torch

from dit_accel import SVG2, Schedule
from dit_accel.core import ops

EVERYWHERE = Schedule(dense_steps=0.0, min_tokens=0)
LAYERS, BRANCHES, TENSORS, STEPS = 3, 2, 2, 4


def coarse(refresh: int) -> SVG2:
    return SVG2(query_clusters=4, key_clusters=8, top_p=0.7, min_key_share=0.2, refresh=refresh)


@pytest.mark.parametrize(("refresh", "plans"), [(1, 4), (2, 2), (3, 2), (9, 1)])
def test_a_plan_serves_so_many_steps(wan, run_wan, monkeypatch, refresh: int, plans: int) -> None:
    made = []
    kmeans = ops.kmeans
    monkeypatch.setattr(ops, "kmeans", lambda *a: made.append(a) or kmeans(*a))
    wan.enable_sparse_attention(coarse(refresh), schedule=EVERYWHERE)
    first = run_wan(wan)
    assert len(made) == plans * LAYERS * BRANCHES * TENSORS
    assert wan.attention_report().calls["sparse"] == STEPS * LAYERS * BRANCHES
    assert torch.equal(run_wan(wan), first), "the next run starts with a plan of its own"
    assert len(made) == 2 * plans * LAYERS * BRANCHES * TENSORS


def test_refresh_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="refresh must be at least 1, got 0"):
        SVG2(refresh=0)
