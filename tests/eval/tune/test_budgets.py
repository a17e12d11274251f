"""Budgets by layer and range of steps: the measured error, its allocation, and the rules."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_transformers import ROWS
from support.tiny_transformers.base import TinyTransformer

import dit_accel_eval.tune.run
from dit_accel import Profile, Rule, Schedule, SVGEar, cli, enable_sparse_attention
from dit_accel.core.attention_call import AttentionCall, CallContext
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.methods.base import Attended
from dit_accel_eval.paired_runner import load_silently
from dit_accel_eval.tune.budgets import (
    DenseStates,
    ErrorCurve,
    ForwardState,
    allocate,
    average_curves,
    measure_curves,
    one_layer_error,
    output_tensors,
    sparse_curves,
)
from dit_accel_eval.tune.space import METHODS, Space, first_trials

GRID = (0.1, 0.2, 0.4)
TINY = RenderSettings(
    "a red circle moving up on a navy background",
    method="dense",
    **{"height": 64, "width": 64, "frames": 5, "steps": 4, "guidance_scale": 2.0},
)


def curve(layer: int, errors: tuple[float, ...], first: int = 0, **changed) -> ErrorCurve:
    """Return a curve of two steps of the first or the second half."""
    values = {"component": "transformer", "steps": 2, "densities": GRID, **changed}
    return ErrorCurve(layer=layer, first=first, end=first + 50, errors=errors, **values)


def density_of(rules: tuple[Rule, ...], context: CallContext, default: float) -> float:
    """Return the density that a call has under rules."""
    schedule = Schedule(dense_steps=0, rules=rules)
    matching = schedule.matching_rules(context)
    if schedule.is_dense(context, matching):
        return 1.0
    return Profile(SVGEar(density=default), schedule).at(matching).densities[0]


def contexts(layers: int, steps: int = 4) -> list[CallContext]:
    """Return the place of every call of a run."""
    return [
        CallContext(step=step, num_steps=steps, layer=layer, num_layers=layers)
        for step, layer in itertools.product(range(steps), range(layers))
    ]


def test_a_planted_layer_gets_all_that_it_needs() -> None:
    # Only the whole attention helps layer 1, and the others gain nearly nothing.
    curves = [
        curve(layer, (9.0,) * 3 if layer == 1 else (1e-3, 5e-4, 1e-4), first)
        for layer, first in itertools.product(range(3), (0, 50))
    ]
    for by in ("layers", "both"):
        rules = allocate(curves, 0.5, by)
        densities = {c: density_of(rules, c, 0.5) for c in contexts(3)}
        assert all(d == 1 for c, d in densities.items() if c.layer == 1)
        assert np.mean(list(densities.values())) == pytest.approx(0.5, abs=2e-3)


def hull(errors: tuple[float, ...], density: float) -> float:
    """Return the lower convex hull of a curve, the least of all chords, from its definition."""
    xs = np.unique([*np.geomspace(GRID[0], GRID[-1], 33), *GRID])
    ys = np.exp(np.interp(np.log(xs), np.log(GRID), np.log(errors)))
    xs, ys = np.append(xs, 1.0), np.append(ys, 0.0)
    left, right = xs <= density + 1e-12, xs >= density - 1e-12
    gap = np.maximum(xs[right] - xs[left][:, None], 1e-12)
    share = np.clip((density - xs[left][:, None]) / gap, 0, 1)
    return float(((1 - share) * ys[left][:, None] + share * ys[right]).min())


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(*[st.floats(1e-3, 1)] * 3), min_size=2, max_size=2),
    st.floats(0.12, 0.9),
)
def test_no_other_split_of_the_density_has_less_error(drops, mean: float) -> None:
    # Errors fall with density. Independently, all splits between two cells are tried on a fine grid.
    curves = [
        curve(layer, tuple(np.cumsum(errors)[::-1].tolist())) for layer, errors in enumerate(drops)
    ]
    rules = allocate(curves, mean, "layers")
    spent = [density_of(rules, c, mean) for c in contexts(2, steps=2)[:2]]
    assert np.mean(spent) <= mean + 1e-3

    chosen = sum(hull(c.errors, d) for c, d in zip(curves, spent, strict=True))
    for first in np.linspace(GRID[0], 1, 19):
        second = 2 * mean - first
        if GRID[0] <= second <= 1:
            other = hull(curves[0].errors, first) + hull(curves[1].errors, second)
            assert chosen <= other * 1.02 + 1e-3


def test_steps_weigh_as_often_as_they_run_and_experts_have_rules_of_their_own() -> None:
    curves = [
        curve(0, (1.0, 0.5, 0.01), component="transformer", steps=1),
        curve(0, (1.0, 0.5, 0.01), 50, component="transformer_2", steps=3),
    ]
    rules = allocate(curves, 0.25, "both")
    assert {rule.expert for rule in rules} == {"transformer", "transformer_2"}
    densities = {
        name: density_of(rules, CallContext(step=s, num_steps=4, component=name), 0.25)
        for name, s in (("transformer", 0), ("transformer_2", 3))
    }
    spent = densities["transformer"] + 3 * densities["transformer_2"]
    assert spent / 4 == pytest.approx(0.25, abs=1e-3)


def test_dense_steps_and_layers_take_no_part() -> None:
    curves = [curve(layer, (1.0, 0.5, 0.1), first) for layer in range(2) for first in (0, 50)]
    left = sparse_curves(curves, Schedule(dense_steps=0.75, dense_layers=(-1,)))
    assert left == [replace(curves[1], steps=1.0)]
    assert sparse_curves(curves, Schedule(dense_steps=1.0)) == []
    assert allocate([], 0.2, "both") == ()


def test_clips_are_averaged() -> None:
    clips = [[curve(0, (1.0, 0.5, 0.25))], [curve(0, (3.0, 1.5, 0.75))]]
    assert average_curves(clips) == [curve(0, (2.0, 1.0, 0.5))]


@pytest.mark.parametrize(
    ("mean", "by", "message"),
    [(0.05, "layers", "least measured one, 0.1"), (1.5, "both", "got 1.5"), (0.2, "heads", "by")],
    ids=["low", "high", "by"],
)
def test_impossible_budgets_are_refused(mean: float, by, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        allocate([curve(0, (1.0, 0.5, 0.1))], mean, by)


class Broken(SVGEar):
    """svg-ear whose third layer returns zeros, so it needs dense attention."""

    name: ClassVar[str] = "svg-ear"

    def attend(self, call: AttentionCall, state, ops) -> Attended | None:
        attended = super().attend(call, state, ops)
        if attended is None or call.context.layer != 2:
            return attended
        return attended._replace(out=torch.zeros_like(attended.out))


@pytest.fixture(scope="module")
def tiny_world():
    request, card = validate(TINY)
    return load_silently(card, request.load_options), request


def test_a_broken_layer_is_found_on_the_bundled_model(tiny_world) -> None:
    pipe, request = tiny_world
    forwards = []
    curves = measure_curves(
        *(pipe, request, Broken()),
        densities=(0.1, 0.5),
        ranges=2,
        report=lambda: forwards.append(1),
    )
    layers = len(pipe.transformer.blocks)
    assert len(forwards) == 2 * 2 * layers
    assert {(c.first, c.end, c.steps) for c in curves} == {(0, 50, 2), (50, 100, 2)}
    rules = allocate(curves, 0.3, "layers")
    assert [rule.layers for rule in rules if rule.dense] == ["2"]
    # The forward of the model itself says which allocation is better.
    dense = DenseStates(2)
    dense.record(pipe, request)
    state = dense.states["transformer", 1]
    assert state.context.step == 3
    errors = []
    for chosen in ((), rules):
        schedule = Schedule(dense_steps=0, min_tokens=0, rules=chosen)
        with (
            torch.no_grad(),
            enable_sparse_attention(pipe.transformer, Broken(density=0.3), schedule=schedule),
        ):
            output = pipe.transformer(*state.arguments, **state.keywords)
        (actual,), (expected,) = output_tensors(output), state.output
        errors.append(float((actual - expected).square().sum()))
    assert errors[1] < 0.5 * errors[0]


def test_a_model_whose_calls_cannot_be_sparse_is_refused(tiny_world, monkeypatch) -> None:
    pipe, request = tiny_world
    monkeypatch.setattr(
        "dit_accel.runtime.attention_runner.unsupported_reason", lambda _facts: "a mask"
    )
    with pytest.raises(RunFailed, match="no attention call can be sparse"):
        measure_curves(pipe, request, SVGEar())


@pytest.mark.parametrize("row", ROWS, ids=[row.family for row in ROWS])
def test_every_family_has_an_error_that_falls_with_density(row: TinyTransformer) -> None:
    transformer = row.build()
    # Some rows also hold parameters of the transformer, which are no arguments.
    inputs = {
        k: v for k, v in row.inputs().items() if k not in dict(transformer.named_parameters())
    }
    inputs["return_dict"] = False
    with torch.no_grad():
        expected = output_tensors(transformer(**inputs))
    place = CallContext(num_steps=1, num_layers=row.layers)
    state = ForwardState(place, (), inputs, expected)
    sparse, whole = (
        one_layer_error(transformer, state, SVGEar(density=d), layer=0) for d in (0.0, 1.0)
    )
    # The prediction of ideogram-4 holds padding, which sparse attention leaves out.
    assert whole < 1e-3
    assert sparse > whole


def falling_curves(layers: int) -> tuple[ErrorCurve, ...]:
    """Return curves of layers with different errors, in two halves of the steps."""
    densities = (0.01, 0.1, 0.4)
    return tuple(
        ErrorCurve(
            *("transformer", layer, first, first + 50, 10, densities),
            errors=tuple((1 + layer) * (0.5 - d) for d in densities),
        )
        for layer in range(layers)
        for first in (0, 50)
    )


@pytest.mark.parametrize("layers", [1, 2, 3, 8], ids=str)
def test_every_point_of_the_space_with_curves_is_a_profile(layers: int) -> None:
    space = Space(METHODS, layers, curves=falling_curves(layers))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for parameters in first_trials(space):
        study.enqueue_trial(parameters)
    for number in range(60):
        trial = study.ask()
        profile = space.profile(trial)
        assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
        if number < len(first_trials(space)):
            assert first_trials(space)[number].items() <= trial.params.items()


def test_a_search_with_measured_budgets_resumes_without_measuring_again(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    size = ["--height", "64", "--width", "64", "--frames", "5", "--steps", "5"]
    out = tmp_path / "mine.yaml"
    command = ["tune", "--prompts", "tiny-world-held-out", "--clips", "2", "--validate", "8"]
    command += ["--trials", "1", "--levers", "attention", "--methods", "svg-ear", "--budgets", "1"]
    command += ["--out", str(out), *size]
    command += ["--target", "ssim>=-1", "--speedup", "0.01"]
    assert cli.main([*command, "--dry-run"]) == 0
    assert "200 single forwards that measure budgets" in capsys.readouterr().out
    assert cli.main(command) == 0
    profile = Profile.load(out)
    assert profile.provenance["budget_clips"] == 1
    rules = profile.schedule.rules
    assert rules, "the first trial spends its density by layers"
    counted = [rule.knobs.get("density", 1.0) for rule in rules for _ in rule.layers.split(",")]
    assert len(counted) == 8
    assert np.mean(counted) == pytest.approx(profile.method.density, abs=2e-3)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the journal holds these curves")

    monkeypatch.setattr(dit_accel_eval.tune.run, "measure_curves", refuse)
    assert cli.main(command) == 0
