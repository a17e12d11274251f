"""The head search on a tiny random model whose best heads are known, because other heads have no effect."""

import json
from dataclasses import replace

import pytest
import support.planted_reward as planted_reward
import torch
from support.launching import SIZE, launch

from dit_accel.cli import main
from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import load_pipeline, read_card
from dit_accel.generation.settings import RenderSettings
from dit_accel.guidance import HeadSet
from dit_accel_eval.heads.export import found_heads
from dit_accel_eval.heads.report import report
from dit_accel_eval.heads.rewards import caption, caption_words, find_reward, sharpness
from dit_accel_eval.heads.run import run_search
from dit_accel_eval.heads.sampling import Candidate, default_steps, sample
from dit_accel_eval.heads.search import Search
from dit_accel_eval.heads.settings import SearchSettings
from dit_accel_eval.heads.validate import validate

PROMPTS = ("a red circle", "a blue square")
SIZES = {"height": 32, "width": 32, "frames": 5, "steps": 2, "guidance_scale": 1.0}
SETTINGS = SearchSettings(PROMPTS, (3,), "support.planted_reward:distance", 2, 1, 2.0, batch=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a random Wan whose attention works in block 1 only: much in head 1, a little in head 0."""
    from conftest import random_wan

    pipe = random_wan()
    with torch.no_grad():
        for index, block in enumerate(pipe.transformer.blocks):
            out = block.attn1.to_out[0].weight  # [C, H D]
            out *= 3.0 if index == 1 else 0.0
            out[:, :16] *= 0.2
    path = tmp_path_factory.mktemp("planted")
    pipe.save_pretrained(path)
    return str(path)


@pytest.fixture
def base(folder):
    base = RenderSettings("", model=folder, **SIZES)
    pipe = load_pipeline(read_card(folder))
    pipe.set_progress_bar_config(disable=True)
    clips = sample(pipe, base, Candidate(None), [(prompt, 3) for prompt in PROMPTS])
    planted_reward.UNGUIDED.update(zip(PROMPTS, clips, strict=True))
    return base


def test_the_planted_heads_are_found(base, tmp_path) -> None:
    search = Search.open(SETTINGS, base, tmp_path)
    assert run_search(search, quiet=True) == [("blocks", 1, 1), ("blocks", 1, 0)]
    scores = search.head_scores([], search.scores.read())
    idle = [score for head, score in scores.items() if head[1] != 1]
    assert max(idle) == 0.0
    assert scores["blocks", 1, 1] > scores["blocks", 1, 0] > 0.0
    clips = sum(len(p.read_text().splitlines()) for p in tmp_path.glob("scores-*.jsonl"))
    # Equal candidates are sampled once, such as both heads of block 1 and "layer blocks.1".
    assert clips <= search.clips()


def test_heads_that_do_not_help_are_not_exported(base, tmp_path) -> None:
    settings = replace(SETTINGS, reward="support.planted_reward:nearness")
    search = Search.open(settings, base, tmp_path)
    assert len(run_search(search, quiet=True) or ()) == 2
    found = found_heads(search)
    assert len(found) == 1
    assert found.provenance["score"] == found.provenance["score_without_guidance"] == 0.0


def test_a_resumed_search_equals_an_uninterrupted_one(base, tmp_path, monkeypatch) -> None:
    whole = Search.open(SETTINGS, base, tmp_path / "whole")
    run_search(whole, quiet=True)
    cut = Search.open(SETTINGS, base, tmp_path / "cut")
    calls = []

    def interrupted(frames, prompt):
        calls.append(prompt)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return find_reward(SETTINGS.reward)(frames, prompt)

    with monkeypatch.context() as patch:
        patch.setattr("dit_accel_eval.heads.run.load_reward", lambda *_: {"score": interrupted})
        with pytest.raises(KeyboardInterrupt):
            run_search(cut, quiet=True)
    assert cut.chosen() is None
    with pytest.raises(InvalidSettings, match="not complete"):
        found_heads(cut)
    with (tmp_path / "cut" / "scores-0-of-1.jsonl").open("a") as file:
        file.write('{"request": "a line that was cut')
    run_search(Search.open(SETTINGS, base, tmp_path / "cut"), quiet=True)
    assert found_heads(cut) == found_heads(whole)
    assert cut.scores.read() == whole.scores.read()


def test_two_shards_equal_one_run(base, tmp_path) -> None:
    whole = Search.open(SETTINGS, base, tmp_path / "whole")
    run_search(whole, quiet=True)
    shards = [Search.open(SETTINGS, base, tmp_path / "parts", (i, 2)) for i in range(2)]
    outcomes = [run_search(shards[turn % 2], quiet=True) for turn in range(6)]
    assert outcomes[0] is None
    assert outcomes[-1] == outcomes[-2] == whole.chosen()
    assert found_heads(shards[0]) == found_heads(whole)
    files = [len(p.read_text().splitlines()) for p in (tmp_path / "parts").glob("scores-*")]
    assert len(files) == 2
    assert min(files) > 0


def test_processes_of_one_launch_finish_all_rounds(folder, tmp_path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("\n".join(PROMPTS))
    arguments = [
        *("heads", "search", f"--prompts={prompts}", "--reward=sharpness", "--rounds=2"),
        *("--top-k=1", "--batch=1", f"--model={folder}", f"--out={out}", "--quiet", *SIZE),
    ]
    assert launch(2, ["-m", "dit_accel"], arguments) == 0
    search = Search.load(out)
    assert len(search.chosen() or ()) == 2
    assert found_heads(search)
    assert len(list(out.glob("scores-*-of-2.jsonl"))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 3.0}, "another scale: 2.0 instead of 3.0"),
        ({"prompts": PROMPTS[:1]}, "another prompts"),
        ({"softness": 0.5}, "another softness"),
    ],
    ids=str,
)
def test_a_changed_setting_is_refused(base, tmp_path, change, message) -> None:
    Search.open(SETTINGS, base, tmp_path)
    with pytest.raises(InvalidSettings, match=message):
        Search.open(SearchSettings(**{**vars(SETTINGS), **change}), base, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "caption"}, "needs captions of the tiny world"),
        ({"reward": "beauty"}, "unknown reward 'beauty': choose from caption"),
        ({"reward": "json:nothing"}, "cannot import reward"),
        ({"reward": "json:__name__"}, "not callable"),
        ({"top_k": 4}, "rounds x top_k is 8, more than the 6 heads"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"scale": -1.0}, "scale must be 0 or more"),
        ({"softness": 2.0}, r"softness must be in \[0, 1\]"),
        ({"prompts": ()}, "no prompts: give at least one"),
        ({"seeds": (1, 1)}, "seeds must be different, got 1 twice"),
    ],
    ids=str,
)
def test_invalid_settings_write_nothing(base, tmp_path, change, message) -> None:
    with pytest.raises(InvalidSettings, match=message):
        Search.open(SearchSettings(**{**vars(SETTINGS), **change}), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_steps_become_the_default_of_the_pipeline(base, tmp_path) -> None:
    """The validation needs the number, because it counts the cost in steps."""
    Search.open(SETTINGS, replace(base, steps=None), tmp_path)
    assert Search.load(tmp_path).base.steps == default_steps("WanPipeline") == 50
    with pytest.raises(InvalidSettings, match="has no default number of steps: search with"):
        default_steps("PipelineOfSomeoneElse")


def test_a_reward_must_be_finite(base, tmp_path) -> None:
    settings = SearchSettings(**{**vars(SETTINGS), "reward": "support.planted_reward:broken"})
    with pytest.raises(InvalidSettings, match="is nan: it must be finite"):
        run_search(Search.open(settings, base, tmp_path), quiet=True)


def test_report_and_validation(base, tmp_path) -> None:
    search = Search.open(SETTINGS, base, tmp_path)
    run_search(search, quiet=True)
    rows = {row["label"]: row for row in report(tmp_path)}
    assert rows["no guidance"]["score"].mean == 0.0
    assert rows["2 heads"]["score"].mean > rows["1 heads"]["score"].mean > 0.0
    assert rows["layer blocks.0"]["gain"].mean == 0.0
    assert rows["softness 0.25"]["score"].mean < rows["2 heads"]["score"].mean
    assert json.loads((tmp_path / "report.json").read_text())["single_heads"]
    assert (tmp_path / "report.png").stat().st_size > 10_000
    fresh = [(prompt, 4) for prompt in PROMPTS]
    labels = [row["label"] for row in validate(tmp_path, fresh, quiet=True)]
    assert labels[:4] == [
        *("no guidance", "no guidance, same cost", "found heads"),
        "best layer blocks.1",
    ]
    again = validate(tmp_path, fresh, quiet=True)
    assert [row["label"] for row in again] == labels
    with pytest.raises(InvalidSettings, match="has used 'a blue square' with seed 3"):
        validate(tmp_path, search.settings.pairs)


def test_the_command_line(base, folder, tmp_path, capsys) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    out = tmp_path / "search"
    arguments = [
        *("heads", "search", f"--prompts={prompts}", "--seeds=3", f"--out={out}", "--scale=2"),
        *(
            "--reward=support.planted_reward:distance",
            "--top-k=1",
            f"--model={folder}",
            *sizes,
            "--quiet",
        ),
    ]
    assert main([*arguments, "--dry-run"]) == 0
    assert "clips, hours unknown before the first clip" in capsys.readouterr().out
    assert not out.exists()
    assert main(arguments) == 0
    assert "best first: blocks.1:1" in capsys.readouterr().out
    assert main(["heads", "report", str(out)]) == 0
    heads = tmp_path / "heads.json"
    assert main(["heads", "export", str(out), "-o", str(heads)]) == 0
    assert HeadSet.load(heads).to_spec() == "blocks.1:1"
    settings = HeadSet.load(heads).settings
    assert (settings["scale"], settings["softness"]) == (2.0, 1.0)
    clip = tmp_path / "clip.mp4"
    render = ["render", *PROMPTS[:1], f"--model={folder}", *sizes, "-o", str(clip), "--quiet"]
    assert main([*render, f"--heads={heads}", f"--report={tmp_path / 'report.json'}"]) == 0
    guidance = json.loads((tmp_path / "report.json").read_text())["guidance"]
    assert (guidance["heads"], guidance["forwards"], guidance["scale"]) == ("blocks.1:1", 2, 2.0)
    capsys.readouterr()
    for option, message in (
        ([f"--heads={heads}x"], "heads are written like"),
        (["--softness=0.5"], "softness applies only to perturbed guidance"),
        (["--pag-scale=-1"], "scale must be 0 or more"),
        (["--heads=blocks.9"], "no block blocks.9"),
    ):
        assert main([*render, *option, "--dry-run"]) == 2
        assert message in capsys.readouterr().err
    assert main([*arguments[:-1], "--pag-scale=2", "--out", str(tmp_path / "x")]) == 2
    assert main([*arguments, "--shard=1"]) == 2


def test_rewards_of_the_tiny_world() -> None:
    import numpy as np

    from dit_accel_assets.world import caption as caption_of
    from dit_accel_assets.world import render, sample_scenes

    found = list(sample_scenes(np.random.default_rng(0), [1, 2], held_out=True))
    clips = [render(scene, 64, 64, 17) for scene in found]
    for scene, clip in zip(found, clips, strict=True):
        assert caption(clip, caption_of(scene)) == caption_words(clip, caption_of(scene)) == 1.0
    assert caption(clips[0], caption_of(found[1])) == 0.0
    assert 0.0 <= caption_words(clips[0], caption_of(found[1])) < 1.0
    assert sharpness(np.zeros((2, 8, 8, 3))) == 0.0
    assert sharpness(clips[1]) > 0.0
