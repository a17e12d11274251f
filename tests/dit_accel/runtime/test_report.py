"""The report in words."""

import pytest

from dit_accel.runtime.report import AttentionReport


def report(calls: dict[str, int], seconds: dict[str, float]) -> AttentionReport:
    """Return a report of a run with some calls and seconds."""
    return AttentionReport(
        method="svg-ear",
        config={},
        precision={},
        family="wan",
        calls=calls,
        fallbacks={},
        remarks=[],
        density={"sparse_calls": None, "all_calls": None},
        plans={"made": 0, "reused": 0},
        faults={},
        seconds=seconds,
        layers={},
    )


def test_it_says_whether_sparse_calls_were_faster() -> None:
    calls = {"dense": 3, "sparse": 4, "fallback": 1}
    text = str(report(calls, {"dense": 2.0, "kmeans": 0.1, "attention": 0.3}))
    assert "seconds 2.00 in dense calls, 0.40 in sparse ones (attention 0.30, kmeans 0.10)" in text
    assert "a sparse call took 0.20 times as long as a dense one" in text


@pytest.mark.parametrize(
    ("calls", "seconds", "line"),
    [
        ({"dense": 2, "sparse": 0, "fallback": 0}, {"dense": 1.5}, "seconds 1.50 in dense calls"),
        (
            {"dense": 0, "sparse": 2, "fallback": 0},
            {"attention": 1.5},
            "seconds 0.00 in dense calls, 1.50 in sparse ones (attention 1.50)",
        ),
        ({"dense": 0, "sparse": 0, "fallback": 0}, {}, "seconds 0.00 in dense calls"),
    ],
    ids=["dense", "sparse", "no-call"],
)
def test_one_kind_of_call_is_not_compared(
    calls: dict[str, int], seconds: dict[str, float], line: str
) -> None:
    last = str(report(calls, seconds)).splitlines()[-1]
    assert last.strip() == line
