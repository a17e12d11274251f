"""Clips for a head search: batches with the same noise for every candidate, scored and kept on disk."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.render import call_arguments, seeded
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.guidance import HeadSet
from dit_accel.io.jsonl import append_record, read_records
from dit_accel_eval.heads.rewards import Reward
from dit_accel_pipelines import Family

Pair = tuple[str, int]


@dataclass(frozen=True)
class Candidate:
    """What is sampled: a head set by its spec (None: no guidance) at a scale, softness and number of steps."""

    heads: str | None
    scale: float = 0.0
    softness: float = 1.0
    steps: int | None = None


@dataclass(frozen=True)
class Scores:
    """Rewards on disk, of one request; each line is a clip of a candidate.

    Files are only ever appended to, one per shard, so that shards on several machines may share a folder.
    """

    folder: Path
    request: str
    shard: str

    @classmethod
    def of(cls, folder: Path, request: Mapping[str, Any], shard: tuple[int, int]) -> Scores:
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
        return cls(folder, digest, f"{shard[0]}-of-{shard[1]}")

    def read(self) -> dict[tuple[Candidate, Pair], float]:
        """All scores that any shard has written."""
        found = {}
        for path in sorted(self.folder.glob("scores-*.jsonl")):
            for record in read_records(path):
                if record.get("request") == self.request:
                    candidate = Candidate(**record["candidate"])
                    found[candidate, (record["prompt"], record["seed"])] = record["score"]
        return found

    def seconds(self) -> list[float]:
        """Seconds of each clip."""
        paths = sorted(self.folder.glob("scores-*.jsonl"))
        return [r["seconds"] for path in paths for r in read_records(path) if "seconds" in r]

    def append(self, candidate: Candidate, pair: Pair, score: float, seconds: float) -> None:
        record = {
            "request": self.request,
            "candidate": asdict(candidate),
            "prompt": pair[0],
            "seed": pair[1],
            "score": score,
            "seconds": seconds,
        }
        append_record(self.folder / f"scores-{self.shard}.jsonl", record)


def chunks(pairs: Sequence[Pair], batch: int) -> list[Sequence[Pair]]:
    """Pairs in batches that are always the same: a clip's last bits depend on its batch."""
    return [pairs[start : start + batch] for start in range(0, len(pairs), batch)]


def score_candidate(
    pipe: Any,
    base: RenderSettings,
    candidate: Candidate,
    pairs: Sequence[Pair],
    batch: int,
    reward: Reward,
    scores: Scores,
    done: Mapping[tuple[Candidate, Pair], float],
) -> Iterator[int]:
    """Sample and score what ``done`` lacks of a candidate; yields the number of clips after each batch."""
    for chunk in chunks(pairs, batch):
        if all((candidate, pair) in done for pair in chunk):
            continue
        start = time.perf_counter()
        frames = sample(pipe, base, candidate, chunk)
        seconds = (time.perf_counter() - start) / len(chunk)
        for pair, clip in zip(chunk, frames, strict=True):
            if (candidate, pair) not in done:
                scores.append(candidate, pair, checked(reward(clip, pair[0]), pair), seconds)
        yield len(chunk)


def checked(score: Any, pair: Pair) -> float:
    if not np.isfinite(score):
        raise InvalidSettings(
            f"the reward of {pair[0]!r} with seed {pair[1]} is {score}: it must be finite"
        )
    return float(score)


def sample(
    pipe: Any, base: RenderSettings, candidate: Candidate, pairs: Sequence[Pair]
) -> np.ndarray:
    """Clips float32 ``[N, T, H, W, 3]`` of prompts and seeds, in one batch."""
    arguments = {
        **call_arguments(replace(base, steps=candidate.steps or base.steps)),
        "prompt": [prompt for prompt, _ in pairs],
        "generator": [torch.Generator().manual_seed(seed) for _, seed in pairs],
    }
    if base.negative_prompt is not None:
        arguments["negative_prompt"] = [base.negative_prompt] * len(pairs)
    with ExitStack() as stack:
        if candidate.heads is not None:
            guided = pipe.enable_perturbed_guidance(
                candidate.scale, heads=candidate.heads, softness=candidate.softness
            )
            stack.enter_context(guided)
        stack.enter_context(seeded(replace(base, seed=pairs[0][1])))
        output = pipe(**arguments)
    if hasattr(output, "frames"):
        return np.asarray(output.frames, np.float32)
    return np.asarray(output.images, np.float32)[:, None]


def mean_score(
    scores: Mapping[tuple[Candidate, Pair], float], candidate: Candidate, pairs: Sequence[Pair]
) -> float | None:
    """Mean reward of a candidate; None while clips are missing."""
    found = [scores.get((candidate, pair)) for pair in pairs]
    if None in found:
        return None
    return float(np.mean([score for score in found if score is not None]))


def checked_base(base: RenderSettings) -> tuple[RenderSettings, ModelCard]:
    """What every clip of a search has in common; with the pipeline's own number of steps, if none is given.

    Raises:
        InvalidSettings: for settings that do not fit the model, or guidance among them.
    """
    if (base.pag_scale, base.heads, base.softness) != (None, None, None):
        raise InvalidSettings("a head search sets the heads itself: give --scale, not --pag-scale")
    base, card = validate(base.as_dense())
    if base.steps is None:
        base = replace(base, steps=default_steps(card.pipeline))
    return base, card


def default_steps(pipeline: str) -> int:
    """Denoising steps of a pipeline class that is not told how many.

    Raises:
        InvalidSettings: if it does not say.
    """
    kind = getattr(diffusers, pipeline, None)
    taken = inspect.signature(kind.__call__).parameters if kind is not None else {}
    steps = taken["num_inference_steps"].default if "num_inference_steps" in taken else None
    if not isinstance(steps, int):
        raise InvalidSettings(f"{pipeline} does not say its number of steps: search with --steps")
    return steps


def same_cost_steps(
    steps: int,
    guidance_scale: float | None,
    family: Family,
    heads: HeadSet,
    true_cfg_scale: float | None = None,
) -> int:
    """Denoising steps that cost as much without perturbed guidance as ``steps`` with it: one forward more in
    each, without the blocks that it shares, beside one, or two with classifier-free guidance.
    """
    scale = guidance_scale if true_cfg_scale is None else true_cfg_scale
    embedded = family.cfg == "embedded" and true_cfg_scale is None
    alone = embedded or (scale is not None and scale <= 1.0)
    forwards = 1 if alone else 2
    order = heads.model.in_order()
    more = 1.0 - order.index(next(iter(heads.heads))) / len(order)
    return round(steps * (forwards + more) / forwards)
