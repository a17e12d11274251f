"""The head search as HeadHunter published it: its algorithm, pairs and rewards."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_pipelines import TINY

from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import RenderSettings
from dit_accel.guidance import ModelShape
from dit_accel_eval.cli.heads import describe_row
from dit_accel_eval.heads import run, sampling
from dit_accel_eval.heads.export import describe_failure, found_heads
from dit_accel_eval.heads.objective import OBJECTIVES, Objective, harmonic_mean
from dit_accel_eval.heads.report import summarize
from dit_accel_eval.heads.sampling import Candidate, Scores, sample
from dit_accel_eval.heads.search import Search, all_heads
from dit_accel_eval.heads.settings import Pair, SearchSettings

MODEL = ModelShape("ToyTransformer", {"double": 2, "single": 3}, heads=3, head_dim=4)
HEADS = all_heads(MODEL)
PROMPTS = ("a red circle", "a blue square", "a red circle")

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
