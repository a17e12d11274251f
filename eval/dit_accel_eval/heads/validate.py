"""Validate found heads on fresh prompts and seeds, beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dit_accel.errors import InvalidSettings
from dit_accel.guidance import parse_heads
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import to_json
from dit_accel.io.reading import read_json
from dit_accel_eval.heads.export import best_candidate
from dit_accel_eval.heads.report import summarize
from dit_accel_eval.heads.request import check_same_request, make_request
from dit_accel_eval.heads.rewards import check_reward
from dit_accel_eval.heads.run import make_sampler
from dit_accel_eval.heads.sampling import Candidate, Scores, same_cost_steps
from dit_accel_eval.heads.search import Search
from dit_accel_eval.heads.settings import Pair


def validate(folder: Path, pairs: Sequence[Pair], *, quiet: bool = False) -> list[dict[str, Any]]:
    """Score the found heads and their controls on pairs that the search did not use.

    The controls are no guidance, no guidance at the same cost, the best whole layer, all heads and random sets. A
    second call resumes. The rows are also written to ``validation.json``.

    Raises:
        InvalidSettings: if the search is not complete, or has used one of the pairs.
    """
    search = Search.load(folder)
    check_fresh(search, folder, pairs)
    candidates = label_candidates(search)
    request = {"validated": read_json(folder / "search.json", "search")}
    scores = Scores.for_request(folder / "validation", request)
    scores.folder.mkdir(exist_ok=True)
    sampler = make_sampler(search, scores)
    total = len(candidates) * len(pairs)
    with tqdm(total=total, desc="clips", disable=quiet or None) as bar:
        for candidate in candidates.values():
            sampler.score(candidate, pairs, bar)
    done = scores.read()
    rows = [
        summarize(label, candidate, pairs, done, search.objective)
        for label, candidate in candidates.items()
    ]
    with atomic_write(folder / "validation.json") as temporary:
        temporary.write_text(to_json({"rows": rows, "pairs": len(pairs)}, indent=2) + "\n")
    return rows


def check_fresh(search: Search, folder: Path, pairs: Sequence[Pair]) -> None:
    """Check that a search is complete, unchanged, and has not used any of the pairs.

    Raises:
        InvalidSettings: naming the problem.
    """
    settings = search.settings
    check_reward(settings.reward, tuple(prompt for prompt, _ in pairs), settings.reward_weights)
    check_same_request(folder / "search.json", make_request(settings, search.base, search.card))
    if not search.is_complete():
        raise InvalidSettings(f"the search in {folder} is not complete: run it again first")
    used = set(settings.pairs) & set(pairs)
    if used:
        prompt, seed = min(used)
        raise InvalidSettings(
            f"the search has used {prompt!r} with seed {seed}: give fresh prompts or seeds"
        )


def label_candidates(search: Search) -> dict[str, Candidate]:
    """Return the candidates to validate, by label.

    Raises:
        InvalidSettings: for a search that chose no head, or that has no number of steps, because its cost is unknown.
    """
    scores, base = search.scores.read(), search.base
    controls = search.controls()
    layers = {label: c for label, c in controls.items() if label.startswith("layer ")}
    means = {label: search.evaluate(layer, scores) for label, layer in layers.items()}
    best_layer = max((mean, label) for label, mean in means.items() if mean is not None)[1]
    found = best_candidate(search, scores)
    if base.steps is None:
        raise InvalidSettings("the search has no number of steps: search again with --steps")
    heads = parse_heads(found.heads or "", search.model)
    steps = same_cost_steps(
        base.steps, base.guidance_scale, search.card.family, heads, base.true_cfg_scale
    )
    return {
        "no guidance": Candidate(None),
        "no guidance, same cost": Candidate(None, steps=steps),
        "found heads": found,
        f"best {best_layer}": layers[best_layer],
        "all heads": controls["all heads"],
        **{label: c for label, c in controls.items() if label.startswith("random")},
    }
