"""The routing of attention calls: each reason alone, and which of several reasons is reported."""

from dataclasses import replace

import pytest

from dit_accel import SVG2, CallContext, Neighborhood, Profile, Rule, Schedule
from dit_accel.runtime.dispatch import UNSUPPORTED, CallFacts, MethodRunner, unsupported_reason
from dit_accel.runtime.run_state import Run
from dit_accel_pipelines import TokenLayout

GRID = TokenLayout(2, 4, 6, text_tokens=5)
GOOD = CallFacts(tokens=53, keys=53, layout=GRID, joint=True, most_tokens=53)
CASES = {
    "which tokens are text": {"layout": None},
    "fewer tokens than the largest": {"layout": None, "joint": False, "tokens": 20, "keys": 20},
    "text masks of another batch size": {"other_batch": True},
    "attention mask": {"masked": True},
    "causal attention": {"causal": True},
    "another dtype than float32": {"other_dtype": True},
    "different length": {"keys": 20},
    "outside the transformer's forward": {"in_forward": False},
    "do not match the grid": {"tokens": 54, "keys": 54},
}


def test_a_call_without_fault_has_no_reason() -> None:
    assert unsupported_reason(GOOD) is None
    line = replace(GOOD, layout=None, joint=False)
    assert unsupported_reason(line) is None


@pytest.mark.parametrize(("text", "change"), CASES.items(), ids=str)
def test_each_fault_has_its_reason(text: str, change: dict) -> None:
    reason = unsupported_reason(replace(GOOD, **change))
    assert reason is not None
    assert text in reason


def test_every_reason_of_the_table_is_covered() -> None:
    covered = {unsupported_reason(replace(GOOD, **change)) for change in CASES.values()}
    assert covered == {reason for reason, _ in UNSUPPORTED}


def test_the_first_reason_of_the_table_is_reported() -> None:
    faults = replace(GOOD, masked=True, causal=True, keys=20)
    assert unsupported_reason(faults) == "attention mask"


def test_token_subsets_replace_a_mask_that_is_a_tensor() -> None:
    subsets = replace(GRID, subsets=("anything",))
    assert unsupported_reason(replace(GOOD, layout=subsets, masked=True)) is None
    unreadable = replace(GOOD, layout=subsets, masked=True, unreadable_mask=True)
    assert unsupported_reason(unreadable) == "attention mask"


def route(profile: Profile, *, tokens: int = 100, grid: bool = True, **context):
    runner, run = MethodRunner(profile), Run(profile)
    place = CallContext(num_steps=10, num_layers=4, **context)
    return runner.route(place, run, tokens=tokens, has_grid=grid, min_tokens=64), run


def test_the_schedule_comes_before_every_fallback() -> None:
    profile = Profile(Neighborhood(), Schedule(dense_steps=0.2))
    decided, _ = route(profile, step=1, grid=False, tokens=1)
    assert (decided.method, decided.reason) == (None, None)
    decided, _ = route(profile, step=2, grid=False, tokens=1)
    assert decided.reason == "neighborhood needs tokens that lie in a grid"
    decided, _ = route(profile, step=2, tokens=1)
    assert decided.reason == "fewer than 64 tokens"
    decided, _ = route(profile, step=2)
    assert decided.method == Neighborhood()


def test_matching_rules_change_knobs_and_are_recorded() -> None:
    rules = (Rule(layers="1", knobs={"top_p": 0.5}), Rule(branch="uncond", dense=True))
    profile = Profile(SVG2(), Schedule(dense_steps=0, rules=rules))
    decided, run = route(profile, layer=1)
    assert decided.method == SVG2(top_p=0.5)
    assert run.matched_rules == {0}
    decided, run = route(profile, layer=2, branch="uncond")
    assert (decided.method, decided.reason) == (None, None)
    assert run.matched_rules == {1}
