"""Greedy rounds over single heads, with controls (HeadHunter, arXiv 2506.10978, algorithm 1).

A search lives in a folder. It resumes, and shards on several machines can share the work.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.tiny_world import warn_unreadable
from dit_accel.generation.validation import check_effect, validate
from dit_accel.guidance import HeadSet, ModelShape, check_family
from dit_accel.io.atomic import atomic_write, check_writable
from dit_accel.io.reading import read_json
from dit_accel_eval.heads.objective import ClipScores, Objective, find_objective
from dit_accel_eval.heads.request import check_same_request, make_request, read_settings
from dit_accel_eval.heads.rewards import check_reward
from dit_accel_eval.heads.sampling import Candidate, Scores, check_base, select_scores
from dit_accel_eval.heads.settings import Pair, SearchSettings

RANDOM_SETS = 5
SOFTNESSES = (0.75, 0.5, 0.25)

Head = tuple[str, int, int]
"""Block list, block and head."""

AllScores: TypeAlias = Mapping[tuple[Candidate, Pair], ClipScores]
"""Scores of all clips of a search."""


@dataclass(frozen=True)
class Search:
    """A head search in a folder.

    Attributes:
        settings: Settings that decide the outcome.
        base: Settings that all clips share.
        card: Model of the search.
        model: Block lists and heads of the model.
        scores: Scores on disk.
        shard: Index of this shard, and the number of shards.
    """

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
        *,
        write: bool = True,
    ) -> Search:
        """Check all settings and start or resume the search of a folder.

        Args:
            settings: settings that decide the outcome.
            base: settings that all clips share.
            out: folder of the search.
            shard: index of this shard, and the number of shards.
            write: write ``search.json`` if it is missing.

        Raises:
            InvalidSettings: for invalid settings, or settings that differ from those of the folder.
        """
        if not 0 <= shard[0] < shard[1]:
            raise InvalidSettings(
                f"shard must be i/n with i from 0 to n - 1, got {shard[0]}/{shard[1]}"
            )
        check_reward(settings.reward, settings.prompts, settings.reward_weights)
        base, card = check_base(replace(base, prompt=settings.prompts[0]))
        check_family(card.family)
        check_effect(settings.make_guidance(), {}, base.steps)
        warn_of_text_mode(settings, card)
        model = read_shape(card)
        if settings.size > len(all_heads(model)):
            raise InvalidSettings(
                f"rounds x top_k is {settings.size}, more than the {len(all_heads(model))} heads of the model"
            )
        request = make_request(settings, base, card)
        path = out / "search.json"
        check_same_request(path, request)
        warn_unreadable(settings.prompts, base.model)
        if write and not path.exists():
            check_writable(path)
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(request, indent=2) + "\n")
        return cls(settings, base, card, model, Scores.for_request(out, request, shard), shard)

    @classmethod
    def load(cls, out: Path) -> Search:
        """Return the search of a folder, to report on.

        Raises:
            InvalidSettings: for a folder without a search.
        """
        try:
            request = read_json(out / "search.json", "search")
            settings = read_settings(request)
            base, card = validate(RenderSettings(settings.prompts[0], **request["render"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidSettings(f"{out} holds no head search: {error}") from None
        scores = Scores.for_request(out, request)
        return cls(settings, base, card, read_shape(card), scores, (0, 1))

    def candidate(self, heads: Sequence[Head], softness: float | None = None) -> Candidate:
        """Return a set of heads at the scale of the search; its softness is the search's unless given."""
        softness = self.settings.softness if softness is None else softness
        return Candidate(head_set(heads, self.model).to_spec(), self.settings.scale, softness)

    @property
    def objective(self) -> Objective:
        """Return what the search maximises."""
        return find_objective(self.settings.reward)

    def evaluate(self, candidate: Candidate, scores: AllScores) -> float | None:
        """Return the value of a candidate, or None while clips are missing."""
        clips = select_scores(scores, candidate, self.settings.pairs)
        return None if clips is None else self.objective.evaluate(clips)

    def accepts(self, candidate: Candidate, scores: AllScores) -> bool:
        """Return True if a candidate's clips are complete and reach the thresholds of the reward."""
        clips = select_scores(scores, candidate, self.settings.pairs)
        return clips is not None and self.objective.accepts(clips)

    def chosen(self) -> list[Head] | None:
        """Return the heads of the complete rounds in the order of choice, or None before the first."""
        heads, is_last = self.finished_rounds(self.scores.read())
        return heads if heads or is_last else None

    def finished_rounds(self, scores: AllScores) -> tuple[list[Head], bool]:
        """Return the heads of the complete rounds in the order of choice, and True if no round is left.

        No round is left after one that chose no head, because the next would have the same scores.
        """
        chosen: list[Head] = []
        for _ in range(self.settings.rounds):
            new = self.choose(chosen, scores)
            if new is None:
                return chosen, False
            if not new:
                break
            chosen += new
        return chosen, True

    def choose(self, chosen: Sequence[Head], scores: AllScores) -> list[Head] | None:
        """Return the heads that a round adds to the chosen ones, or None while clips are missing."""
        with_head = self.head_scores(chosen, scores)
        if with_head is None:
            return None
        ranked = rank_heads(with_head)
        if self.objective.thresholds:
            ranked = [h for h in ranked if self.accepts(self.candidate([*chosen, h]), scores)]
        return ranked[: self.settings.top_k]

    def head_scores(self, chosen: Sequence[Head], scores: AllScores) -> dict[Head, float] | None:
        """Return the value of the chosen set plus each other head, or None while clips are missing."""
        with_head = {}
        for head in all_heads(self.model):
            if head not in chosen:
                value = self.evaluate(self.candidate([*chosen, head]), scores)
                if value is None:
                    return None
                with_head[head] = value
        return with_head

    def controls(self) -> dict[str, Candidate]:
        """Return the controls of the single heads, by label.

        The controls are no guidance, each whole layer, all heads, and random sets of the size that the search chooses.
        """
        import numpy as np

        order = all_heads(self.model)
        controls = {"no guidance": Candidate(None)}
        for block_list, block in self.model.ordered_blocks():
            layer = [head for head in order if head[:2] == (block_list, block)]
            controls[f"layer {block_list}.{block}"] = self.candidate(layer)
        controls["all heads"] = self.candidate(order)
        generator = np.random.default_rng(0)
        for number in range(RANDOM_SETS):
            picked = generator.choice(len(order), self.settings.size, replace=False)
            controls[f"random {number}"] = self.candidate([order[i] for i in sorted(picked)])
        return controls

    def curves(self, chosen: Sequence[Head]) -> dict[str, Candidate]:
        """Return the first k of the chosen heads, and all of them at other softnesses, by label."""
        if not chosen:
            return {}
        curves = {f"{k} heads": self.candidate(chosen[:k]) for k in range(1, len(chosen) + 1)}
        for softness in SOFTNESSES:
            curves[f"softness {softness:g}"] = self.candidate(chosen, softness)
        return curves

    def stages(self) -> Iterator[list[Candidate]]:
        """Yield the candidates in stages: controls, each round, then the curves.

        The iteration ends early if other shards have not finished a round.
        """
        yield list(self.controls().values())
        chosen: list[Head] = []
        for _ in range(self.settings.rounds):
            others = [head for head in all_heads(self.model) if head not in chosen]
            yield [self.candidate([*chosen, head]) for head in others]
            new = self.choose(chosen, self.scores.read())
            if new is None:
                return
            if not new:
                break
            chosen += new
        yield [candidate for candidate in self.curves(chosen).values() if candidate.heads]

    def is_complete(self) -> bool:
        """Return True if every candidate of every stage has all its scores."""
        scores = self.scores.read()
        if not self.finished_rounds(scores)[1]:
            return False
        candidates = [candidate for stage in self.stages() for candidate in stage]
        return all(self.evaluate(candidate, scores) is not None for candidate in candidates)

    def clips(self) -> int:
        """Return the number of clips of the whole search, if every round chooses as many heads as it may."""
        heads, settings = len(all_heads(self.model)), self.settings
        singles = sum(heads - r * settings.top_k for r in range(settings.rounds))
        curves = settings.size - 1 + len(SOFTNESSES)
        return (len(self.controls()) + singles + curves) * len(settings.pairs)


def warn_of_text_mode(settings: SearchSettings, card: ModelCard) -> None:
    """Warn if a model has no text tokens that the text mode could perturb."""
    if settings.text_mode == "joint" and not card.family.joint:
        warnings.warn(
            f"text mode joint is as visual here: self-attention of {card.family.name} has no text tokens",
            stacklevel=3,
        )


def read_shape(card: ModelCard) -> ModelShape:
    """Return the block lists and heads of a model."""
    return ModelShape.from_config(card.transformer_class, card.transformer, card.family)


def all_heads(model: ModelShape) -> list[Head]:
    """Return every head in the order of execution."""
    return [(s, b, h) for s, b in model.ordered_blocks() for h in range(model.heads)]


def head_set(heads: Sequence[Head], model: ModelShape) -> HeadSet:
    """Return single heads as a set."""
    grouped: dict[tuple[str, int], tuple[int, ...]] = {}
    for block_list, block, head in heads:
        grouped[block_list, block] = (*grouped.get((block_list, block), ()), head)
    return HeadSet(model, grouped)


def rank_heads(scores: Mapping[Head, float]) -> list[Head]:
    """Return the heads by falling score; equal ones stay in the order of execution."""
    return sorted(scores, key=lambda head: -scores[head])
