"""The head search as HeadHunter published it: its algorithm, pairs, rewards, settings and records."""

from __future__ import annotations

import dataclasses
import json
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_pipelines import TINY

from dit_accel.cli import main
from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import RenderSettings
from dit_accel.guidance import HeadSet, ModelShape, PerturbedGuidance
from dit_accel_assets import head_sets
from dit_accel_eval.cli.heads import describe_row
from dit_accel_eval.heads import run, sampling
from dit_accel_eval.heads.export import describe_failure, found_heads
from dit_accel_eval.heads.objective import OBJECTIVES, Objective, harmonic_mean
from dit_accel_eval.heads.report import report, summarize
from dit_accel_eval.heads.sampling import Candidate, Scores, sample
from dit_accel_eval.heads.search import Search, all_heads
from dit_accel_eval.heads.settings import Pair, SearchSettings
from dit_accel_eval.heads.validate import validate

MODEL = ModelShape("ToyTransformer", {"double": 2, "single": 3}, heads=3, head_dim=4)
HEADS = all_heads(MODEL)
PROMPTS = ("a red circle", "a blue square", "a red circle")
SIZES = {"height": 32, "width": 32, "frames": 5, "steps": 2, "guidance_scale": 1.0}

Parts = dict[str, Callable[[np.ndarray, str], float]]


def make_parts(seed: int) -> Parts:
    """Return toy scores of a clip, which is one 1 per perturbed head and the seed.

    Heads act alone and in pairs. A head that is weak alone may be the best beside others.
    """
    rng = np.random.default_rng(seed)
    parts: Parts = {}
    for name, middle in (("pick", 20.0), ("clip", 25.0), ("aesthetic", 6.0)):
        alone, pairs = rng.normal(size=len(HEADS)), rng.normal(size=(len(HEADS),) * 2)
        parts[name] = partial(score_toy, middle, alone, pairs, rng.normal(size=100))
    return parts


def score_toy(
    middle: float, alone: Any, together: Any, noise: Any, frames: np.ndarray, prompt: str
) -> float:
    mask, seed = frames[:-1], int(frames[-1])
    chance = noise[seed] * (1 + mask @ alone) + len(prompt) / 50
    return float(middle + 0.6 * mask @ alone + 0.4 * mask @ together @ mask + 0.3 * chance)


def make_clip(heads: list[Any], seed: int) -> np.ndarray:
    return np.array([*(float(head in heads) for head in HEADS), seed])


def sample_toy(
    pipe: Any, base: Any, candidate: Candidate, pairs: list[Pair], perturbed_attention: Any
) -> list[np.ndarray]:
    """Stand in for the pipeline: read the heads of a candidate from its spec."""
    heads = []
    for part in (candidate.heads or "").replace(" ", "").split(";"):
        name, _, listed = part.partition(":")
        if name:
            indices = range(MODEL.heads) if listed in ("", "*") else map(int, listed.split(","))
            heads += [(*name.split("."), index) for index in indices]
    typed = [(block_list, int(block), head) for block_list, block, head in heads]
    return [make_clip(typed, seed) for _, seed in pairs]


@pytest.fixture
def run_toy(monkeypatch, tmp_path) -> Callable[..., tuple[Search, Any]]:
    """Return a function that runs a search of the toy model."""
    monkeypatch.setattr(sampling, "load_quiet_pipeline", lambda *_: object())
    monkeypatch.setattr(sampling, "sample", sample_toy)

    def run_settings(settings: SearchSettings, parts: Parts) -> tuple[Search, Any]:
        monkeypatch.setattr(run, "load_reward", lambda *_: parts)
        scores = Scores(tmp_path, "toy", "0-of-1")
        base = RenderSettings(settings.prompts[0], steps=2)
        card: Any = SimpleNamespace(source="none", family=None)
        search = Search(settings, base, card, MODEL, scores, (0, 1))
        return search, run.run_search(search, quiet=True)

    return run_settings


def run_algorithm_1(
    parts: Parts, pairs: list[Pair], rounds: int, top_k: int, method: str
) -> list[tuple[str, int, int]]:
    """Run algorithm 1 of arXiv 2506.10978 with the three ways of ranking of its released code.

    It samples nothing: a clip is what the toy model makes of the perturbed heads and the seed.
    """
    selected: list[Any] = []
    for _ in range(rounds):
        table = {}
        for head in HEADS:
            if head not in selected:
                clips = [(make_clip([*selected, head], seed), prompt) for prompt, seed in pairs]
                table[head] = {
                    name: sum(score(clip, prompt) for clip, prompt in clips) / len(clips)
                    for name, score in parts.items()
                }
        if method == "pickscore":
            rated = {head: mean["pick"] for head, mean in table.items()}
        elif method == "harmonic_pick_clip":
            rated = {
                head: statistics.harmonic_mean([mean["pick"], mean["clip"]])
                for head, mean in table.items()
            }
        else:
            rated = {
                head: mean["clip"]
                for head, mean in table.items()
                if mean["pick"] >= 20 and mean["aesthetic"] >= 6
            }
        order = sorted(rated.items(), key=lambda item: item[1], reverse=True)
        selected += [head for head, _ in order[:top_k]]
    return selected


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("reward", "method"),
    [
        ("support.planted_reward:distance", "pickscore"),
        ("harmonic-pick-clip", "harmonic_pick_clip"),
        ("pickscore-thresholding-clip", "pickscore_thresholding_clip"),
    ],
)
@pytest.mark.parametrize(("rounds", "top_k"), [(1, 6), (4, 2)])
def test_the_greedy_rounds_are_algorithm_1(run_toy, seed, reward, method, rounds, top_k) -> None:
    parts = make_parts(seed)
    settings = SearchSettings(PROMPTS, (0, 7, 2), reward, rounds, top_k, pairing="zip", batch=2)
    named = {"score": parts["pick"]} if method == "pickscore" else parts
    search, chosen = run_toy(settings, named)
    assert chosen == run_algorithm_1(parts, settings.pairs, rounds, top_k, method)
    assert search.is_complete()
    if method != "pickscore_thresholding_clip":
        assert len(chosen) == rounds * top_k


def test_a_head_that_is_weak_alone_can_be_chosen_later(run_toy) -> None:
    """Only a search in rounds finds such heads, so the toy model must have some."""
    parts = make_parts(1)
    settings = SearchSettings(PROMPTS, (0, 7, 2), "json:dumps", 4, 2, pairing="zip")
    _, chosen = run_toy(settings, {"score": parts["pick"]})
    once = run_algorithm_1(parts, settings.pairs, 1, 8, "pickscore")
    assert set(chosen) - set(once)


def test_thresholds_can_leave_rounds_short_or_empty(run_toy) -> None:
    parts = make_parts(0)
    settings = SearchSettings(("a",), (0,), "pickscore-thresholding-clip", 2, 7)
    few, chosen = run_toy(settings, parts)
    assert 0 < len(chosen) < settings.size
    assert chosen == run_algorithm_1(parts, settings.pairs, 2, 7, "pickscore_thresholding_clip")
    assert few.is_complete()


def test_a_search_whose_heads_reach_no_threshold_says_so(run_toy) -> None:
    parts = {**make_parts(0), "pick": lambda *_: 19.99}
    search, chosen = run_toy(SearchSettings(("a",), (0,), "pickscore-thresholding-clip"), parts)
    assert chosen == []
    assert search.is_complete()
    message = "no head reached the thresholds of reward pickscore-thresholding-clip"
    assert describe_failure(search).startswith(f"{message} (pick 20, aesthetic 6)")
    with pytest.raises(InvalidSettings, match="no head reached the thresholds"):
        found_heads(search)
    row = summarize(
        "no guidance",
        Candidate(None),
        search.settings.pairs,
        search.scores.read(),
        search.objective,
    )
    assert row["accepted"] is False
    assert row["gain"].mean == 0.0
    columns = describe_row(row)
    assert columns["thresholds"] == "not reached"
    assert columns["gain"] == "+0.000"


def test_zipped_pairs() -> None:
    settings = SearchSettings(PROMPTS, (0, 7, 2), pairing="zip")
    assert settings.pairs == [("a red circle", 0), ("a blue square", 7), ("a red circle", 2)]
    product = SearchSettings(PROMPTS[:2], (0, 7))
    assert product.pairs == [(prompt, seed) for prompt in PROMPTS[:2] for seed in (0, 7)]
    for prompts, seeds, pairing, message in (
        (PROMPTS, (0, 1), "zip", "one seed for each prompt, got 3 prompts and 2 seeds"),
        (PROMPTS, (4, 1, 4), "zip", r"pairs of prompt and seed must be different, got \('a red"),
        (PROMPTS, (0, 1), "product", "prompts must be different, got 'a red circle' twice"),
        (PROMPTS, (0, 1), "cross", "pairing must be product or zip, got 'cross'"),
    ):
        with pytest.raises(InvalidSettings, match=message):
            SearchSettings(prompts, seeds, pairing=pairing)


def test_each_clip_has_its_own_seed(run_toy, monkeypatch) -> None:
    batches = []

    def record(pipe, base, candidate, pairs, perturbed_attention):
        batches.append(list(pairs))
        return sample_toy(pipe, base, candidate, pairs, perturbed_attention)

    monkeypatch.setattr(sampling, "sample", record)
    settings = SearchSettings(PROMPTS, (0, 7, 2), "json:dumps", pairing="zip", batch=2)
    run_toy(settings, {"score": make_parts(0)["pick"]})
    pairs = [("a red circle", 0), ("a blue square", 7), ("a red circle", 2)]
    assert batches[:2] == [pairs[:2], pairs[2:]]
    assert {pair for batch in batches for pair in batch} == set(pairs)


def test_the_harmonic_reward_combines_means() -> None:
    """The mean of harmonic means is another number: 16.0 here."""
    objective = OBJECTIVES["harmonic-pick-clip"]
    clips = [{"pick": 10.0, "clip": 40.0}, {"pick": 40.0, "clip": 10.0}]
    assert objective.evaluate(clips) == pytest.approx(25.0)
    assert harmonic_mean(21.3, 27.9) == pytest.approx(statistics.harmonic_mean([21.3, 27.9]))
    assert harmonic_mean(-3.0, 2.0) == harmonic_mean(0.0, 0.0) == 0.0
    assert objective.accepts([{"pick": 0.0, "clip": 0.0}])
    thresholds = OBJECTIVES["pickscore-thresholding-clip"]
    clips = [{"pick": p, "clip": 1.0, "aesthetic": 6.0} for p in (19.0, 21.0)]
    assert thresholds.accepts(clips)
    assert not thresholds.accepts(clips[:1])
    assert not thresholds.accepts([{"pick": 30.0, "clip": 1.0, "aesthetic": 5.9}])


def test_intervals_of_combined_rewards_are_those_of_the_jackknife() -> None:
    rng = np.random.default_rng(0)
    pick, clip = rng.normal(20, 2, 12), rng.normal(25, 3, 12)
    clips = [{"pick": p, "clip": c} for p, c in zip(pick, clip, strict=True)]
    spread = OBJECTIVES["harmonic-pick-clip"].spread(clips)
    value = statistics.harmonic_mean([pick.mean(), clip.mean()])
    assert np.mean(spread) == pytest.approx(value)
    # The delta method: derivatives of the harmonic mean at the means.
    p, c = pick.mean(), clip.mean()
    linear = 2 * (c**2 * (pick - p) + p**2 * (clip - c)) / (p + c) ** 2
    assert np.std(spread) == pytest.approx(np.std(linear), rel=0.02)
    assert Objective().spread([{"score": 1.0}, {"score": 4.0}]) == [1.0, 4.0]
    average = Objective(lambda means: means["a"])
    assert average.spread([{"a": 1.0}, {"a": 4.0}, {"a": 9.0}]) == pytest.approx([1.0, 4.0, 9.0])
    assert average.spread([{"a": 5.0}]) == [5.0]


class PromptedPipeline:
    """Runs a tiny pipeline, which has no text encoder, as the search calls one with an encoder."""

    def __init__(self, name: str) -> None:
        self.tiny = TINY[name]
        self.pipe = self.tiny.build()
        self.enable_perturbed_guidance = self.pipe.enable_perturbed_guidance

    def __call__(self, generator: Any, output_type: str, **_: Any) -> Any:
        images = self.tiny.run(self.pipe, generator=generator[0], output_type=output_type)
        return SimpleNamespace(images=images)


def test_the_search_perturbs_text_rows_as_published() -> None:
    pipe = PromptedPipeline("sd3")
    base = RenderSettings("a", steps=3)
    candidate = Candidate("transformer_blocks.0:1", 3.0)

    def sample_in(**changes: Any) -> np.ndarray:
        settings = SearchSettings(("a",), (3,), "json:dumps", **changes)
        return sample(pipe, base, candidate, settings.pairs, settings.perturbed_attention)

    visual, joint = sample_in(), sample_in(text_mode="joint")
    arguments = {"heads": candidate.heads, "perturbation": "identity"}
    for mode, clips in (("visual", visual), ("joint", joint)):
        with pipe.enable_perturbed_guidance(3.0, text_mode=mode, **arguments):
            images = pipe([torch.Generator().manual_seed(3)], "np").images
        np.testing.assert_array_equal(clips[:, 0], images)
    assert np.abs(visual - joint).max() > 1e-4
    assert np.abs(visual - sample_in(perturbation="uniform")).max() > 1e-4
    assert np.abs(visual - sample_in(interval=(0.0, 0.5))).max() > 1e-4
    blurred = [sample_in(perturbation="blurred-query", sigma=sigma) for sigma in (0.5, 2.0)]
    assert np.abs(blurred[0] - blurred[1]).max() > 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    from conftest import random_wan

    path = tmp_path_factory.mktemp("wan")
    random_wan().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_mode": "joint"}, 'another text_mode: "visual" instead of "joint"'),
        ({"perturbation": "uniform"}, "another perturbation"),
        ({"sigma": 1.0, "perturbation": "blurred-query"}, "another perturbation"),
        ({"interpolation": "slerp", "text_mode": "joint"}, "another text_mode"),
        ({"interval": (0.0, 0.5)}, r"another interval: \[0.0, 1.0\] instead of \[0.0, 0.5\]"),
        ({"pairing": "zip"}, "another pairing"),
        ({"reward": "caption"}, "another reward"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:text mode joint")
def test_the_new_settings_are_part_of_the_search(folder, tmp_path, change, message) -> None:
    prompt = "a red circle moving up on a navy background"
    settings = SearchSettings((prompt,), (0,), "sharpness")
    base = RenderSettings("", model=folder, **SIZES)
    Search.open(settings, base, tmp_path)
    assert Search.open(settings, base, tmp_path).settings == settings
    assert Search.load(tmp_path).settings == settings
    with pytest.raises(InvalidSettings, match=message):
        Search.open(dataclasses.replace(settings, **change), base, tmp_path)


def test_a_search_of_an_earlier_version_is_read_but_not_continued(folder, tmp_path) -> None:
    settings = SearchSettings(("a",), (0,), "sharpness")
    base = RenderSettings("", model=folder, **SIZES)
    Search.open(settings, base, tmp_path)
    request = json.loads((tmp_path / "search.json").read_text())
    for name in ("pairing", "perturbation", "text_mode", "interval", "reward_weights"):
        del request[name]
    (tmp_path / "search.json").write_text(json.dumps(request))
    assert Search.load(tmp_path).settings == settings
    with pytest.raises(
        InvalidSettings, match="holds a search of an earlier version, without pairing"
    ):
        Search.open(settings, base, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "a search with a scale of 0 perturbs nothing: give --scale above 0"),
        ({"softness": 0.0}, "a search with a softness of 0 perturbs nothing"),
        ({"perturbation": "noise"}, "perturbation"),
        ({"perturbation": "blurred-query"}, "sigma and the perturbation blurred-query go together"),
        ({"interpolation": "slerp"}, "interpolation"),
        ({"text_mode": "text"}, "text_mode"),
        ({"interval": (0.5, 0.5)}, "interval must be two rising fractions"),
        ({"interval": (0.6, 0.9)}, r"guidance in the interval \(0.6, 0.9\) holds none of 2 steps"),
    ],
    ids=str,
)
def test_guidance_that_cannot_be_searched_is_refused(folder, tmp_path, change, message) -> None:
    base = RenderSettings("", model=folder, **SIZES)
    with pytest.raises(InvalidSettings, match=message):
        Search.open(SearchSettings(("a",), (0,), "sharpness", **change), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_text_tokens_warns_of_joint(folder, tmp_path) -> None:
    settings = SearchSettings(("a",), (0,), "sharpness", text_mode="joint")
    with pytest.warns(
        UserWarning, match="text mode joint is as visual here: self-attention of wan"
    ):
        Search.open(settings, RenderSettings("", model=folder, **SIZES), tmp_path)


@pytest.mark.filterwarnings("ignore:text mode joint")
def test_a_head_set_records_how_its_heads_were_found(folder, tmp_path) -> None:
    from conftest import random_wan

    prompts = tmp_path / "p.txt"
    prompts.write_text("a\nb")
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    options = ["--reward=sharpness", "--top-k=1", "--pairing=zip", "--interval=0,0.5"]
    options += ["--perturbation=mean-query", "--text-mode=joint", f"--model={folder}", "--quiet"]
    out, file = tmp_path / "out", tmp_path / "heads.json"
    search = ["heads", "search", f"--prompts={prompts}", f"--out={out}", *options, *sizes]
    assert main(search) == 0
    assert main(["heads", "export", str(out), "-o", str(file)]) == 0
    heads = HeadSet.load(file)
    assert heads.settings["perturbation"] == "mean-query"
    assert heads.settings["text_mode"] == "joint"
    assert heads.settings["interval"] == (0.0, 0.5)
    found = heads.provenance
    assert (found["reward"], found["pairing"], found["seeds"]) == ("sharpness", "zip", [0, 1])
    pipe = random_wan()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        used = pipe.enable_perturbed_guidance(heads=file).settings
        assert (used.perturbation, used.text_mode) == ("mean-query", "joint")
        assert used.interval == (0.0, 0.5)
        pipe.enable_perturbed_guidance(heads=file, perturbation="mean-query", softness=0.5)
    for changed in ({"perturbation": "identity"}, {"text_mode": "visual"}):
        (name, value), *_ = changed.items()
        with pytest.warns(UserWarning, match=f"were found with {name} .* and run with '{value}'"):
            pipe.enable_perturbed_guidance(heads=file, **changed)


def test_old_head_sets_load_and_mean_what_they_meant() -> None:
    heads = HeadSet.load(head_sets()["tiny-world"])
    assert set(heads.settings) == {"scale", "softness"}
    settings = PerturbedGuidance(**heads.settings)
    assert (settings.perturbation, settings.text_mode) == ("identity", "visual")


# Printed in arXiv 2506.10978v4 (appendix D.1, tables 3 and 4) and set by run.sh, run_flux.sh and the defaults of
# pipeline_distributed.py in the released code 3828d1c.
PUBLISHED = {
    "headhunter-general": ((1, 24, 3.0, 0.25), (20, 1024, "float16"), 20),
    "headhunter-style": ((5, 3, 3.0, 1.0), (20, 1024, "float16"), 5),
    "headhunter-style-flux": ((5, 3, 8.0, 1.0), (15, 512, "bfloat16"), 5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str, folder, tmp_path, monkeypatch, capsys) -> None:
    opened: list[tuple[SearchSettings, RenderSettings]] = []

    def record(settings: SearchSettings, base: RenderSettings, *_: Any, **__: Any) -> Any:
        opened.append((settings, base))
        return SimpleNamespace(clips=lambda: 1, scores=SimpleNamespace(seconds=lambda: []))

    monkeypatch.setattr(Search, "open", record)
    (rounds, top_k, scale, softness), (steps, size, dtype), count = PUBLISHED[name]
    texts = [f"prompt {min(i, 10)}" if count == 20 else f"prompt {i}" for i in range(count)]
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(texts))
    search = ["heads", "search", f"--setting={name}", f"--prompts={prompts}", f"--out={tmp_path}"]
    assert main([*search, f"--model={folder}", "--dry-run"]) == 0
    assert f"setting {name}: arXiv 2506.10978v4" in capsys.readouterr().err
    settings, base = opened.pop()
    assert (settings.rounds, settings.top_k, settings.scale) == (rounds, top_k, scale)
    assert (settings.softness, settings.reward, settings.batch) == (softness, "pickscore", 1)
    assert (settings.perturbation, settings.text_mode) == ("identity", "joint")
    assert settings.interval == (0.0, 1.0)
    seeds = [*[0] * 10, *range(10)] if count == 20 else range(count)
    assert settings.pairs == list(zip(texts, seeds, strict=True))
    assert (base.steps, base.height, base.width, base.dtype) == (steps, size, size, dtype)
    assert (base.guidance_scale, base.model) == (0.0, folder)
    given = ["--rounds=2", "--steps=3", "--dtype=float32", "--size=smoke", "--text-mode=visual"]
    given += ["--seeds=5", "--pairing=product", f"--prompts={_write_one(tmp_path)}"]
    assert main([*search, f"--model={folder}", *given, "--dry-run"]) == 0
    settings, base = opened.pop()
    assert (settings.rounds, settings.top_k, settings.text_mode) == (2, top_k, "visual")
    assert settings.pairs == [("a red circle", 5)]
    assert (base.steps, base.dtype, base.height) == (3, "float32", 128)
    capsys.readouterr()
    assert main([*search, "--dry-run"]) == 2
    assert "give that or another model with --model" in capsys.readouterr().err
    assert not opened


def _write_one(folder: Path) -> Path:
    path = folder / "one.txt"
    path.write_text("a red circle")
    return path


def test_the_general_setting_needs_its_number_of_prompts(folder, tmp_path, capsys) -> None:
    arguments = ["--setting=headhunter-general", f"--prompts={_write_one(tmp_path)}"]
    arguments += [f"--model={folder}", f"--out={tmp_path / 'out'}", "--reward=sharpness"]
    assert main(["heads", "search", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "has 20 prompts with one seed each, got 1 prompts: give 20, or --seeds" in error
    assert main(["heads", "search", *arguments, "--interval=0"]) == 2
    assert "--interval takes two shares of the steps" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:text mode joint")
def test_combined_rewards_are_reported_and_validated(folder, tmp_path, monkeypatch) -> None:
    parts = {
        "pick": lambda frames, _: 20 + 100 * float(frames.mean()),
        "clip": lambda frames, _: 25 + 100 * float(frames.std()),
    }
    monkeypatch.setattr(run, "load_reward", lambda *_: parts)
    for module in ("heads.search", "heads.validate"):
        monkeypatch.setattr(f"dit_accel_eval.{module}.check_reward", lambda *_: None)
    monkeypatch.setattr("dit_accel_eval.heads.request.find_weights", lambda *_: [])
    settings = SearchSettings(("a", "b"), (0, 1), "harmonic-pick-clip", 1, 1, pairing="zip")
    search = Search.open(settings, RenderSettings("", model=folder, **SIZES), tmp_path)
    assert run.run_search(search, quiet=True)
    line = json.loads((tmp_path / "scores-0-of-1.jsonl").read_text().splitlines()[0])
    assert line["score"].keys() == parts.keys()
    rows = {row["label"]: row for row in report(tmp_path)}
    scores = search.scores.read()
    unguided = [scores[Candidate(None), pair] for pair in settings.pairs]
    means = [statistics.mean(clip[name] for clip in unguided) for name in parts]
    assert rows["no guidance"]["score"].mean == pytest.approx(statistics.harmonic_mean(means))
    labels = [row["label"] for row in validate(tmp_path, [("a", 5), ("b", 6)], quiet=True)]
    assert labels[:3] == ["no guidance", "no guidance, same cost", "found heads"]
