"""Every method with every precision, guidance, batch and feature of diffusers: at full selection a
pipeline renders what it renders without us, and is bit for bit itself again after ``disable``.
"""

import pytest
import torch
from support.composition import (
    CACHES,
    FEATURES,
    LEVERS,
    METHODS,
    PRECISIONS,
    REFUSED_LEVERS,
    Case,
    every,
    pairwise,
    relative_error,
    render,
    with_levers,
)

from dit_accel import Guard, InvalidSettings, Profile, Schedule
from dit_accel.runtime.profile import parse_levers

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
FEW = pairwise()
LEVER_CASES = with_levers()
LIGHT = [
    case for index, case in enumerate(LEVER_CASES) if not index % 3 and case.lever != "compile"
]


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


def check_lever(build_wan, case: Case, outcomes: dict[Case, str]) -> None:
    outcomes[case] = "failed"
    torch._dynamo.reset()
    pipe = build_wan(two_transformers=case.feature == "two transformers")
    FEATURES[case.feature](pipe)
    plain, levers = render(pipe, case), LEVERS[case.lever]
    reason = REFUSED_LEVERS.get((case.lever, case.feature))
    if reason is not None:
        with pytest.raises(InvalidSettings, match=reason):
            pipe.enable_acceleration({"method": "dense", **levers})
        assert torch.equal(render(pipe, case), plain)
        outcomes[case] = "refused"
        return
    pipe.enable_acceleration({"method": "dense", **levers})
    expected = render(pipe, case)
    method, precision = METHODS[case.method], case.precision
    profile = Profile(method, ALWAYS, precision=precision, **parse_levers(levers))
    pipe.enable_acceleration(profile)
    found = render(pipe, case)
    report = pipe.attention_report()
    assert report.calls["sparse"] > 0
    assert report.calls["fallback"] == 0
    assert relative_error(found, expected) < PRECISIONS[case.precision]
    pipe.disable_acceleration()
    assert torch.equal(render(pipe, case), plain), "not itself again"
    outcomes[case] = "passed"


def test_pairs_are_covered() -> None:
    assert len(FEW) < 200
    assert len(set(FEW)) == len(FEW)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_pairs(build_wan, outcomes, case: Case) -> None:
    check(build_wan, case, outcomes)


@pytest.mark.parametrize("case", LIGHT, ids=str)
def test_levers(build_wan, outcomes, case: Case) -> None:
    check_lever(build_wan, case, outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in LEVER_CASES if case not in LIGHT], ids=str)
def test_more_levers(build_wan, outcomes, case: Case) -> None:
    check_lever(build_wan, case, outcomes)


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
