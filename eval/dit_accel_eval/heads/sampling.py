"""Sample and score the clips of a head search.

Every candidate gets the same batches with the same noise. Scores stay on disk.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import ModelCard, load_pipeline
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.guidance import HeadSet
from dit_accel.io.jsonl import append_record, read_records
from dit_accel_eval.heads.objective import SCORE, ClipScores
from dit_accel_eval.heads.rewards import Reward
from dit_accel_eval.heads.settings import Pair, SearchSettings
from dit_accel_pipelines import Family

if TYPE_CHECKING:
    import numpy as np
    from tqdm import tqdm


@dataclass(frozen=True)
class Candidate:
    """A way to guide that is sampled and scored.

    Attributes:
        heads: Spec of the perturbed heads; None turns perturbed guidance off.
        scale: Guidance scale.
        softness: Share of the perturbed attention, in [0, 1].
        steps: Denoising steps; None takes those of the search.
    """

    heads: str | None
    scale: float = 0.0
    softness: float = 1.0
    steps: int | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of one request on disk. Each line is a clip of a candidate.

    Each shard appends to a file of its own, so shards on several machines can share a folder.

    Attributes:
        folder: Folder of the files.
        request: Digest of the request; lines of other requests are ignored.
        shard: Name of the shard that appends.
    """

    folder: Path
    request: str
    shard: str

    @classmethod
    def for_request(
        cls, folder: Path, request: Mapping[str, Any], shard: tuple[int, int] = (0, 1)
    ) -> Scores:
        """Return the scores of a request; ``shard`` is an index and the number of shards."""
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
        return cls(folder, digest, f"{shard[0]}-of-{shard[1]}")

    def read(self) -> dict[tuple[Candidate, Pair], ClipScores]:
        """Return the scores of all shards."""
        scores: dict[tuple[Candidate, Pair], ClipScores] = {}
        for record in self._records():
            if record.get("request") == self.request:
                candidate, score = Candidate(**record["candidate"]), record["score"]
                named = score if isinstance(score, dict) else {SCORE: score}
                scores[candidate, (record["prompt"], record["seed"])] = named
        return scores

    def seconds(self) -> list[float]:
        """Return the seconds of each clip."""
        return [record["seconds"] for record in self._records() if "seconds" in record]

    def append(self, candidate: Candidate, pair: Pair, scores: ClipScores, seconds: float) -> None:
        """Append the scores of a clip to the file of this shard; a single score is written as a number."""
        record = {
            "request": self.request,
            "candidate": asdict(candidate),
            "prompt": pair[0],
            "seed": pair[1],
            "score": scores.get(SCORE, scores),
            "seconds": seconds,
        }
        append_record(self.folder / f"scores-{self.shard}.jsonl", record)

    def _records(self) -> list[dict[str, Any]]:
        paths = sorted(self.folder.glob("scores-*.jsonl"))
        return [record for path in paths for record in read_records(path)]


@dataclass
class Sampler:
    """Samples and scores clips. The pipeline is loaded for the first clip without a score.

    Attributes:
        base: Settings that all clips share.
        card: Model to load.
        reward: Functions that score a clip, by the names of their scores.
        settings: Settings of the search.
        scores: Scores to read and append to.
        pipe: The loaded pipeline, or None.
    """

    base: RenderSettings
    card: ModelCard
    reward: Mapping[str, Reward]
    settings: SearchSettings
    scores: Scores
    pipe: Any = None

    def score(self, candidate: Candidate, pairs: Sequence[Pair], bar: tqdm[Any]) -> None:
        """Sample and score the clips of a candidate that have no score yet; the bar counts all clips."""
        done = self.scores.read()
        for batch in chunks(pairs, self.settings.batch):
            missing = [pair for pair in batch if (candidate, pair) not in done]
            if missing:
                self._score_batch(candidate, batch, missing)
            bar.update(len(batch))

    def _score_batch(
        self, candidate: Candidate, batch: Sequence[Pair], missing: Sequence[Pair]
    ) -> None:
        if self.pipe is None:
            self.pipe = load_quiet_pipeline(self.base, self.card)
        start = time.perf_counter()
        # The last bits of a clip depend on its batch, so the whole batch is sampled again.
        frames = sample(self.pipe, self.base, candidate, batch, self.settings.perturbed_attention)
        seconds = (time.perf_counter() - start) / len(batch)
        for pair, clip in zip(batch, frames, strict=True):
            if pair in missing:
                scores = {
                    name: check_score(score(clip, pair[0]), pair)
                    for name, score in self.reward.items()
                }
                self.scores.append(candidate, pair, scores, seconds)


def load_quiet_pipeline(base: RenderSettings, card: ModelCard) -> Any:
    """Load the pipeline on the device of this process, without a progress bar of its own."""
    from dit_accel.generation.distributed import this_process

    pipe: Any = load_pipeline(card, this_process().load_options(base.load_options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chunks(pairs: Sequence[Pair], batch: int) -> list[Sequence[Pair]]:
    """Split pairs into batches."""
    return [pairs[start : start + batch] for start in range(0, len(pairs), batch)]


def check_score(score: Any, pair: Pair) -> float:
    """Return the score of a clip as a float.

    Raises:
        InvalidSettings: for a score that is not finite.
    """
    import numpy as np

    if not np.isfinite(score):
        raise InvalidSettings(
            f"the reward of {pair[0]!r} with seed {pair[1]} is {score}: it must be finite"
        )
    return float(score)


def sample(
    pipe: Any,
    base: RenderSettings,
    candidate: Candidate,
    pairs: Sequence[Pair],
    perturbed_attention: Mapping[str, Any] = MappingProxyType({}),
) -> np.ndarray:
    """Return the clips of some pairs, sampled in one batch, float32 ``[N, T, H, W, 3]``.

    Args:
        pipe: the pipeline.
        base: settings that all clips share.
        candidate: how the clips are guided.
        pairs: their prompts and seeds.
        perturbed_attention: more arguments of ``enable_perturbed_guidance``.
    """
    import numpy as np

    from dit_accel.generation.render import call_arguments, seeded

    arguments = {
        **call_arguments(replace(base, steps=candidate.steps or base.steps)),
        "prompt": [prompt for prompt, _ in pairs],
        "generator": [torch.Generator().manual_seed(seed) for _, seed in pairs],
    }
    if base.negative_prompt is not None:
        arguments["negative_prompt"] = [base.negative_prompt] * len(pairs)
    with ExitStack() as stack:
        if candidate.heads is not None:
            guidance = pipe.enable_perturbed_guidance(
                candidate.scale,
                heads=candidate.heads,
                softness=candidate.softness,
                **perturbed_attention,
            )
            stack.enter_context(guidance)
        stack.enter_context(seeded(replace(base, seed=pairs[0][1])))
        output = pipe(**arguments)
    if hasattr(output, "frames"):
        return np.asarray(output.frames, np.float32)
    return np.asarray(output.images, np.float32)[:, None]


def select_scores(
    scores: Mapping[tuple[Candidate, Pair], ClipScores], candidate: Candidate, pairs: Sequence[Pair]
) -> list[ClipScores] | None:
    """Return the scores of a candidate's clips, or None while a clip has none."""
    found = [scores.get((candidate, pair)) for pair in pairs]
    return None if None in found else [clip for clip in found if clip is not None]


def check_base(base: RenderSettings) -> tuple[RenderSettings, ModelCard]:
    """Check the settings that all clips of a search share. Missing steps become the pipeline's default.

    Raises:
        InvalidSettings: for settings that do not fit the model, or that set perturbed guidance.
    """
    if (base.pag_scale, base.heads, base.softness) != (None, None, None):
        raise InvalidSettings("a head search sets the heads itself: give --scale, not --pag-scale")
    base, card = validate(base.as_dense())
    if base.steps is None:
        base = replace(base, steps=default_steps(card.pipeline))
    return base, card


def default_steps(pipeline: str) -> int:
    """Return the default number of denoising steps of a pipeline class.

    Raises:
        InvalidSettings: if the class has no default.
    """
    import diffusers

    pipeline_class = getattr(diffusers, pipeline, None)
    call = pipeline_class.__call__ if pipeline_class is not None else lambda: None
    steps = inspect.signature(call).parameters.get("num_inference_steps")
    if steps is None or not isinstance(steps.default, int):
        raise InvalidSettings(f"{pipeline} has no default number of steps: search with --steps")
    return steps.default


def same_cost_steps(
    steps: int,
    guidance_scale: float | None,
    family: Family,
    heads: HeadSet,
    true_cfg_scale: float | None = None,
) -> int:
    """Return the denoising steps that cost as much without perturbed guidance as ``steps`` with it.

    A guided step runs one more forward, from the first perturbed block on. Without it a step runs one forward, or two
    with classifier-free guidance.
    """
    scale = guidance_scale if true_cfg_scale is None else true_cfg_scale
    embedded = family.cfg == "embedded" and true_cfg_scale is None
    alone = embedded or (scale is not None and scale <= 1.0)
    forwards = 1 if alone else 2
    order = heads.model.ordered_blocks()
    extra = 1.0 - order.index(next(iter(heads.heads))) / len(order)
    return round(steps * (forwards + extra) / forwards)
