"""Every method with every precision, guidance, batch and feature of diffusers: at full selection a
pipeline renders what it renders without us, and is bit for bit itself again after ``disable``.
"""

import pytest
import torch
from support.composition import (
    FEATURES,
    METHODS,
    PRECISIONS,
    Case,
    every,
    pairwise,
    relative_error,
    render,
)

from dit_accel import Guard, Schedule

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
FEW = pairwise()
CACHES = ("FirstBlockCache", "MagCache", "TaylorSeer", "PyramidAttentionBroadcast")


def check(build_wan, case: Case, outcomes: dict[Case, str]) -> None:
    outcomes[case] = "failed"
    pipe = build_wan(two_transformers=case.feature == "two transformers")
    FEATURES[case.feature](pipe)
    expected = render(pipe, case)
    pipe.enable_sparse_attention(METHODS[case.method], schedule=ALWAYS, precision=case.precision)
    found = render(pipe, case)
    report = pipe.attention_report()
    forwards = 4 if case.guidance == "none" or case.guidance == "batched" else 8
    assert 0 < report.calls["sparse"] <= 3 * forwards
    assert (report.calls["sparse"] < 3 * forwards) == (case.feature in CACHES)
    assert report.calls["dense"] == report.calls["fallback"] == 0
    assert relative_error(found, expected) < PRECISIONS[case.precision]
    assert torch.equal(render(pipe, case), found), "a second run differs"
    pipe.disable_sparse_attention()
    assert torch.equal(render(pipe, case), expected), "not itself again"
    outcomes[case] = "passed"


def test_pairs_are_covered() -> None:
    assert len(FEW) < 200
    assert len(set(FEW)) == len(FEW)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_pairs(build_wan, outcomes, case: Case) -> None:
    check(build_wan, case, outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("method", METHODS)
def test_product(build_wan, outcomes, method: str, feature: str) -> None:
    for case in every():
        if (case.method, case.feature) == (method, feature):
            check(build_wan, case, outcomes)


@pytest.mark.parametrize("cache", CACHES)
def test_guard_on_refuses_caches(build_wan, cache: str) -> None:
    pipe = build_wan()
    FEATURES[cache](pipe)
    pipe.enable_sparse_attention("svg-ear", schedule=ALWAYS, guard=Guard("on"))
    with pytest.raises(RuntimeError, match="use guard 'warn', or disable the cache"):
        render(pipe, Case("svg-ear", "full", "separate", "1", cache))
