"""HeadHunter: greedy rounds over single heads, with controls, resumable and sharded
(arXiv 2506.10978, algorithm 1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dit_accel.errors import InvalidSettings
from dit_accel.generation.distributed import this_process
from dit_accel.generation.loading import ModelCard, fingerprint, ingredients, load_pipeline
from dit_accel.generation.render import versions
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.guidance import HeadSet, ModelShape, PerturbedGuidance, check_family, parse_heads
from dit_accel.io.atomic import atomic_write, check_writable
from dit_accel.io.jsonl import to_json
from dit_accel.io.parsing import parse_dataclass
from dit_accel_eval.heads.rewards import check_reward, find_reward
from dit_accel_eval.heads.sampling import (
    Candidate,
    Pair,
    Scores,
    checked_base,
    chunks,
    mean_score,
    score_candidate,
)

RANDOM_SETS = 5
SOFTNESSES = (0.75, 0.5, 0.25)

Head = tuple[str, int, int]
"""Block list, block, head."""


@dataclass(frozen=True)
class SearchSettings:
    """What decides the outcome of a search.

    Attributes:
        prompts, seeds: every candidate is sampled on each pair, with the same noise.
        reward: name of a reward, or ``module:function``; more is better.
        rounds, top_k: each round adds the best ``top_k`` heads to the set.
        scale, softness: of the guidance while searching.
        batch: clips sampled at a time.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    reward: str = "caption"
    rounds: int = 1
    top_k: int = 3
    scale: float = 3.0
    softness: float = 1.0
    batch: int = 10

    def __post_init__(self) -> None:
        for name in ("rounds", "top_k", "batch"):
            if getattr(self, name) < 1:
                raise InvalidSettings(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("prompts", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InvalidSettings(f"{name} must be some, each once")

    @property
    def pairs(self) -> list[Pair]:
        return list(product(self.prompts, self.seeds))


@dataclass(frozen=True)
class Search:
    """A search in a folder: its settings, and what of it is on disk."""

    settings: SearchSettings
    base: RenderSettings
    card: ModelCard
    model: ModelShape
    scores: Scores
    shard: tuple[int, int]

    @classmethod
    def open(
        cls,
        settings: SearchSettings,
        base: RenderSettings,
        out: Path,
        shard: tuple[int, int] = (0, 1),
        keep: bool = True,
    ) -> Search:
        """Check everything and write ``search.json`` (unless told not to), or compare with the one that is
        there.

        Raises:
            InvalidSettings: for settings that do not fit, or differ from those of the folder.
        """
        if not 0 <= shard[0] < shard[1]:
            raise InvalidSettings(
                f"shard must be i/n with i from 0 to n - 1, got {shard[0]}/{shard[1]}"
            )
        strength = {"scale": settings.scale, "softness": settings.softness}
        parse_dataclass(PerturbedGuidance, strength, "guidance")
        check_reward(settings.reward, settings.prompts)
        base, card = checked_base(base)
        check_family(card.family)
        model = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
        if settings.rounds * settings.top_k > len(all_heads(model)):
            raise InvalidSettings(
                f"rounds x top_k is more than the {len(all_heads(model))} heads there are"
            )
        request = request_of(settings, base, card)
        compare(out / "search.json", request)
        if keep and not (out / "search.json").exists():
            check_writable(out / "search.json")
            with atomic_write(out / "search.json") as temporary:
                temporary.write_text(json.dumps(request, indent=2) + "\n")
        return cls(settings, base, card, model, Scores.of(out, request, shard), shard)

    @classmethod
    def load(cls, out: Path) -> Search:
        """The search of a folder, to report on.

        Raises:
            InvalidSettings: if there is none.
        """
        try:
            request = json.loads((out / "search.json").read_text())
            names = [f.name for f in fields(SearchSettings)]
            settings = parse_dataclass(SearchSettings, {n: request[n] for n in names}, "search")
            base, card = validate(RenderSettings("", **request["render"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidSettings(f"{out} holds no head search: {error}") from None
        model = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
        return cls(settings, base, card, model, Scores.of(out, request, (0, 1)), (0, 1))

    def chosen(self) -> list[Head] | None:
        """Heads in the order of choice, of the rounds that are complete; None if the first is not."""
        scores = self.scores.read()
        chosen: list[Head] = []
        for _ in range(self.settings.rounds):
            rates = self.rates(chosen, scores)
            if rates is None:
                return chosen or None
            chosen += ranked(rates)[: self.settings.top_k]
        return chosen

    def rates(
        self, chosen: Sequence[Head], scores: Mapping[tuple[Candidate, Pair], float]
    ) -> dict[Head, float] | None:
        """Mean reward of the set with each head that is not in it; None while clips are missing."""
        rates = {}
        for head in all_heads(self.model):
            if head not in chosen:
                mean = mean_score(scores, self.candidate([*chosen, head]), self.settings.pairs)
                if mean is None:
                    return None
                rates[head] = mean
        return rates

    def candidate(self, heads: Sequence[Head], softness: float | None = None) -> Candidate:
        """A set of heads at the search's scale."""
        softness = self.settings.softness if softness is None else softness
        return Candidate(head_set(heads, self.model).spec(), self.settings.scale, softness)

    def stages(self) -> Iterator[list[Candidate]]:
        """Candidates that can be sampled one after the other: controls, then round by round, then the score
        over the number of heads and over softness.
        """
        yield list(controls(self).values())
        chosen: list[Head] = []
        for _ in range(self.settings.rounds):
            left = [head for head in all_heads(self.model) if head not in chosen]
            yield [self.candidate([*chosen, head]) for head in left]
            rates = self.rates(chosen, self.scores.read())
            if rates is None:
                return  # another shard has not done its share
            chosen += ranked(rates)[: self.settings.top_k]
        yield [candidate for candidate in curves(self, chosen).values() if candidate.heads]

    def clips(self) -> int:
        """Number of clips of the whole search."""
        heads, settings = len(all_heads(self.model)), self.settings
        singles = sum(heads - r * settings.top_k for r in range(settings.rounds))
        curve = settings.rounds * settings.top_k - 1 + len(SOFTNESSES)
        return (len(controls(self)) + singles + curve) * len(settings.pairs)


def run(search: Search, quiet: bool = False, together: bool = False) -> list[Head] | None:
    """Sample and score what is missing of this shard's share; returns the heads in the order of choice, or
    None while other shards are not done.

    Args:
        together: the shards are the processes of one launch: each stage begins when all are done with the one
            before.
    """
    settings, (index, count) = search.settings, search.shard
    reward, pipe = find_reward(settings.reward), None
    bar = tqdm(total=search.clips() // count, desc="clips", unit="clip", disable=quiet or None)
    with bar:
        for stage in search.stages():
            batches = list(product(stage, chunks(settings.pairs, settings.batch)))
            for candidate, pairs in batches[index::count]:
                done = search.scores.read()
                if mean_score(done, candidate, pairs) is not None:
                    bar.update(len(pairs))
                    continue
                if pipe is None:
                    pipe = load_pipeline(
                        search.card, this_process().load_options(search.base.load_options)
                    )
                    pipe.set_progress_bar_config(disable=True)
                arguments = (candidate, pairs, settings.batch, reward, search.scores, done)
                for clips in score_candidate(pipe, search.base, *arguments):
                    bar.update(clips)
            if together:
                this_process().wait()
    return search.chosen() if is_complete(search) else None


def is_complete(search: Search) -> bool:
    """Whether every candidate of every stage is scored."""
    scores, pairs = search.scores.read(), search.settings.pairs
    chosen = search.chosen() or []
    if len(chosen) < search.settings.rounds * search.settings.top_k:
        return False
    return all(mean_score(scores, c, pairs) is not None for stage in search.stages() for c in stage)


def controls(search: Search) -> dict[str, Candidate]:
    """What single heads are compared with: no guidance, each whole layer, all heads, and random sets of the
    size that is searched for.
    """
    order = all_heads(search.model)
    rows = {"no guidance": Candidate(None)}
    for stack, block in search.model.in_order():
        own = [head for head in order if head[:2] == (stack, block)]
        rows[f"layer {stack}.{block}"] = search.candidate(own)
    rows["all heads"] = search.candidate(order)
    size = search.settings.rounds * search.settings.top_k
    generator = np.random.default_rng(0)
    for number in range(RANDOM_SETS):
        picked = generator.choice(len(order), size, replace=False)
        rows[f"random {number}"] = search.candidate([order[i] for i in sorted(picked)])
    return rows


def curves(search: Search, chosen: Sequence[Head]) -> dict[str, Candidate]:
    """The first k heads of the choice, and all of them at other softnesses."""
    rows = {f"{k} heads": search.candidate(chosen[:k]) for k in range(1, len(chosen) + 1)}
    for softness in SOFTNESSES:
        rows[f"softness {softness:g}"] = search.candidate(chosen, softness)
    return rows


def best_candidate(search: Search, scores: Mapping[tuple[Candidate, Pair], float]) -> Candidate:
    """Of the first k heads of a complete search's choice, and of the softnesses of all, what scored best."""
    pairs = search.settings.pairs
    asked = curves(search, search.chosen() or []).values()
    return max(asked, key=lambda candidate: mean_score(scores, candidate, pairs) or 0.0)


def found_heads(search: Search) -> HeadSet:
    """The head set of the `best_candidate`, with how it was found.

    Raises:
        InvalidSettings: while clips are missing.
    """
    chosen = search.chosen()
    if chosen is None or not is_complete(search):
        raise InvalidSettings(
            "the search is not complete: run it again, in every shard, and then export"
        )
    scores, settings = search.scores.read(), search.settings
    without = mean_score(scores, Candidate(None), settings.pairs)
    best = best_candidate(search, scores)
    prompts = hashlib.sha256("\n".join(settings.prompts).encode()).hexdigest()
    provenance = {
        "method": "greedy rounds over single heads (HeadHunter, arXiv 2506.10978)",
        "order": [list(head) for head in chosen],
        "reward": settings.reward,
        "rounds": settings.rounds,
        "top_k": settings.top_k,
        "prompts": len(settings.prompts),
        "prompts_sha256": prompts,
        "seeds": list(settings.seeds),
        "steps": search.base.steps,
        "guidance_scale": search.base.guidance_scale,
        "true_cfg_scale": search.base.true_cfg_scale,
        "size": [search.base.frames, search.base.height, search.base.width],
        "weights": fingerprint(search.card.source),
        "score": mean_score(scores, best, settings.pairs),
        "score_without_guidance": without,
        "note": "the score is that of the search itself, and optimistic: validate on fresh prompts and seeds",
        "versions": versions(),
    }
    assert best.heads is not None
    found = parse_heads(best.heads, search.model)
    kept = {"scale": best.scale, "softness": best.softness}
    return HeadSet(found.model, found.heads, kept, provenance)


def head_set(heads: Sequence[Head], model: ModelShape) -> HeadSet:
    """Single heads as a set."""
    grouped: dict[tuple[str, int], tuple[int, ...]] = {}
    for stack, block, head in heads:
        grouped[stack, block] = (*grouped.get((stack, block), ()), head)
    return HeadSet(model, grouped)


def all_heads(model: ModelShape) -> list[Head]:
    """Every head, in the order of execution."""
    return [(s, b, h) for s, b in model.in_order() for h in range(model.heads)]


def ranked(rates: Mapping[Head, float]) -> list[Head]:
    """Heads by falling reward; equal ones in the order of execution."""
    return sorted(rates, key=lambda head: -rates[head])


def request_of(settings: SearchSettings, base: RenderSettings, card: ModelCard) -> dict[str, Any]:
    """All that decides the scores, as plain values."""
    told = {f.name: getattr(base, f.name) for f in fields(base) if f.name not in ("prompt", "seed")}
    whole = {
        **asdict(settings),
        "render": told,
        **ingredients(card, base.load_options),
        "versions": versions(),
    }
    plain: dict[str, Any] = json.loads(to_json(whole))
    return plain


def compare(path: Path, request: Mapping[str, Any]) -> None:
    """Refuse a request that is not the one of the folder."""
    before = json.loads(path.read_text()) if path.exists() else request
    for key in request:
        if before.get(key) != request[key]:
            raise InvalidSettings(
                f"{path.parent} holds a search with another {key}: {_short(before.get(key))} instead of "
                f"{_short(request[key])}; choose another folder"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."
