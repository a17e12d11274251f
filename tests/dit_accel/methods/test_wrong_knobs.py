"""Wrong values of knobs, which every method refuses in one line."""

import dataclasses
import math
from typing import Any

import pytest

from dit_accel import METHODS, SVG2, Band, Method, Radial, ReTtention, TopKBlocks
from dit_accel.errors import InvalidSettings
from dit_accel.io.parsing import _field_types

NO_VALUE = object()
WRONG: tuple[Any, ...] = (
    *("x", "abc", b"x", None, True, [], [1], ["x"], [1, 2, 3], (0.5, None), {"a": 1}, {1}, 1j),
    *(math.nan, math.inf, -math.inf, -1, 10**30, [math.nan], SVG2, NO_VALUE),
)
KNOBS = [(kind, knob.name) for kind in METHODS.values() for knob in dataclasses.fields(kind)]


@pytest.mark.parametrize(("kind", "knob"), KNOBS, ids=lambda x: getattr(x, "name", x))
def test_a_wrong_value_is_refused_in_one_line(kind: type[Method], knob: str) -> None:
    errors = []
    for value in WRONG:
        try:
            method = kind(**{knob: value})
        except InvalidSettings as error:
            errors.append(str(error))
        else:
            kept = getattr(method, knob)
            assert kept == (tuple(value) if isinstance(value, list) else value)
            assert isinstance(hash(method), int)
    assert len(errors) >= len(WRONG) - 5
    assert not any("\n" in error for error in errors)
    # No knob takes any of these.
    for value in (NO_VALUE, 1j, b"x", {"a": 1}, math.nan, math.inf, SVG2):
        with pytest.raises(InvalidSettings, match=rf"^{kind.name} knob {knob}\b"):
            kind(**{knob: value})


@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_the_types_of_all_knobs_are_known(kind: type[Method]) -> None:
    assert list(_field_types(kind)) == [knob.name for knob in dataclasses.fields(kind)]


@pytest.mark.parametrize(
    ("kind", "knobs", "message"),
    [
        (Radial, {"decay": "x"}, "radial knob decay must be float, got 'x'"),
        (SVG2, {"kmeans_iterations": 3}, "svg2 knob kmeans_iterations must be tuple[int, int], got 3"),
        (TopKBlocks, {"tile": "abc"}, "topk-blocks knob tile must be tuple[int, int, int] | None, got 'abc'"),
        (ReTtention, {"mask": 3}, "re-ttention knob mask must be str | Method, got 3"),
        (ReTtention, {"lam": None}, "re-ttention knob lam must be float, got None"),
        (Band, {"density": math.inf}, "band knob density: a number must be finite and below 2**63, got inf"),
    ],
    ids=str,
)  # fmt: skip
def test_the_knob_and_its_type_are_named(kind: type[Method], knobs: dict, message: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        kind(**knobs)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("kind", "knobs", "message"),
    [
        (ReTtention, {"lam": 0.1}, "lam has no effect with mode merge: set mode to paper"),
        (ReTtention, {"mode": "paper", "beta": 0.5}, "beta has no effect with mode paper: set mode to merge"),
        (ReTtention, {"mask": Band(), "density": 0.2}, "density has no effect beside a mask of density"),
        (ReTtention, {"mask": "raster-window", "density": 0.2}, "density has no effect with mask raster-window"),
        (ReTtention, {"reuse_below": 1.0, "density": 0.2}, "density has no effect with reuse_below 1"),
    ],
    ids=str,
)  # fmt: skip
def test_a_knob_without_effect_is_refused(kind: type[Method], knobs: dict, message: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        kind(**knobs)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(", or leave it out")


def test_a_method_of_somebody_else_is_checked_before_its_own_checks() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(Band):
        share: float = 0.5

        def __post_init__(self) -> None:
            assert self.share < 1

    assert Mine(share=0.25).share == 0.25
    with pytest.raises(InvalidSettings, match="band knob share must be float, got 'x'"):
        Mine(share="x")


def test_lists_become_tuples() -> None:
    assert SVG2(kmeans_iterations=[4, 2]) == SVG2(kmeans_iterations=(4, 2))
