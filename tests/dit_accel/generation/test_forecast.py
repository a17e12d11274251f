"""A dry run predicts the sparse calls that the run reports."""

import json
import re

import pytest

from dit_accel import Profile, Schedule, cli
from dit_accel.cli.render import command as render_command
from dit_accel.generation.forecast import count_tokens, find_few_tokens, predict_no_effect
from dit_accel.generation.loading import read_card
from dit_accel.generation.render import render_with
from dit_accel.generation.settings import RenderSettings
from dit_accel.methods import SVG2, Dense
from dit_accel.runtime.presets import read_shipped
from dit_accel_assets.sizes import SIZES

SMALL = RenderSettings("a red circle", height=32, width=32, frames=5, steps=2, guidance_scale=1.0)
PAYS = "where sparse attention begins to pay"


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (Schedule(), f"8 tokens, fewer than 768, {PAYS}"),
        (Schedule(min_tokens=9), "8 tokens, fewer than 9"),
        (Schedule(min_tokens=8, dense_steps=1.0), "the schedule leaves all 2 steps dense"),
        (Schedule(min_tokens=8, dense_steps=0.51), "the schedule leaves all 2 steps dense"),
        (Schedule(min_tokens=8, dense_steps=0.5), None),
        (Schedule(min_tokens=0, dense_steps=0.0), None),
    ],
    ids=str,
)
def test_the_prediction_agrees_with_the_report(tiny_world, schedule, reason) -> None:
    profile = Profile(SVG2(), schedule)
    predicted = predict_no_effect(SMALL, read_card(SMALL.model), profile)
    assert predicted == (None if reason is None else f"no call will be sparse: {reason}")
    reported = render_with(tiny_world, SMALL, profile).attention.no_effect
    assert (reported is None) == (predicted is None)


def test_nothing_is_predicted_for_dense_attention_and_unknown_sizes() -> None:
    card = read_card(SMALL.model)
    assert predict_no_effect(SMALL, card, Profile(Dense())) is None
    unknown = RenderSettings("a red circle", steps=2)
    assert predict_no_effect(unknown, card, Profile(SVG2())) is None


@pytest.mark.parametrize("size", SIZES)
def test_the_help_gives_frames_and_tokens_of_each_size(size: str) -> None:
    height, width, frames = SIZES[size]
    settings = RenderSettings("a red circle", height=height, width=width, frames=frames)
    tokens = count_tokens(settings, read_card(settings.model))
    option = next(o for o in render_command.params if o.name == "size")
    text = f"{size} is {height} x {width} x {frames}"
    assert re.search(rf"{text}( frames)?, {tokens:,} tokens", option.help)
    few = f"{tokens:,} tokens are fewer than 768, {PAYS}" if tokens < 768 else None
    assert find_few_tokens(settings, read_card(settings.model)) == few


def test_a_dry_run_of_render_says_that_no_call_will_be_sparse(tmp_path, capsys) -> None:
    command = [
        "render",
        "a red circle",
        "--size",
        "smoke",
        "-o",
        str(tmp_path / "x.mp4"),
        "--dry-run",
    ]
    assert cli.main(command) == 0
    reason = json.loads(capsys.readouterr().out)["no_effect"]
    assert reason == f"no call will be sparse: 320 tokens, fewer than 768, {PAYS}"
    assert cli.main([*command, "--set", "schedule.min_tokens=0"]) == 0
    assert json.loads(capsys.readouterr().out)["no_effect"] is None


@pytest.mark.parametrize("steps", [25, 30], ids=str)
@pytest.mark.parametrize("source", ["--preset", "--profile"])
def test_a_render_says_first_that_a_cache_was_tuned_for_other_steps(
    tmp_path, capsys, source: str, steps: int
) -> None:
    shipped = tmp_path / "tuned.yaml"
    read_shipped("balanced").save(shipped)
    name = "balanced" if source == "--preset" else str(shipped)
    command = ["render", "a red circle", source, name, "--steps", str(steps), "--dry-run"]
    assert cli.main([*command, "-o", str(tmp_path / "x.mp4")]) == 0
    told = f"cache was tuned for 25 steps, and this run has {steps}: tune it again"
    assert (told in capsys.readouterr().err) is (steps != 25)


def test_a_render_says_first_that_no_call_will_be_sparse(tmp_path, capsys) -> None:
    command = ["render", "a red circle", "--height", "32", "--width", "32", "--frames", "5"]
    assert cli.main([*command, "--steps", "2", "-o", str(tmp_path / "x.mp4")]) == 0
    told = capsys.readouterr()
    assert f"no call will be sparse: 8 tokens, fewer than 768, {PAYS}\n" in told.err
    assert "cannot pay" not in told.err + told.out
    assert told.out.count("fewer than 768 tokens") == 1
