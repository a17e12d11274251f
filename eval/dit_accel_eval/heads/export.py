"""Export the head set that a search found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import fingerprint
from dit_accel.guidance import HeadSet, parse_heads
from dit_accel_eval.heads.sampling import Candidate, mean_score
from dit_accel_eval.heads.search import Head, Search
from dit_accel_eval.heads.settings import Pair


def best_candidate(search: Search, scores: Mapping[tuple[Candidate, Pair], float]) -> Candidate:
    """Return the best of the curves of a complete search: first k heads, or softness of all heads."""
    pairs = search.settings.pairs
    candidates = search.curves(search.chosen() or []).values()
    return max(candidates, key=lambda candidate: mean_score(scores, candidate, pairs) or 0.0)


def found_heads(search: Search) -> HeadSet:
    """Return the head set of the `best_candidate`, with its provenance.

    Raises:
        InvalidSettings: while clips are missing.
    """
    chosen = search.chosen()
    if chosen is None or not search.is_complete():
        raise InvalidSettings(
            "the search is not complete: run it again in every shard, and then export"
        )
    best = best_candidate(search, search.scores.read())
    assert best.heads is not None
    heads = parse_heads(best.heads, search.model)
    strength = {"scale": best.scale, "softness": best.softness}
    return HeadSet(heads.model, heads.heads, strength, provenance(search, chosen, best))


def provenance(search: Search, chosen: list[Head], best: Candidate) -> dict[str, Any]:
    """Return how a head set was found: the search, its scores and the versions."""
    from dit_accel.generation.identity import versions

    settings, base, scores = search.settings, search.base, search.scores.read()
    return {
        "method": "greedy rounds over single heads (HeadHunter, arXiv 2506.10978)",
        "order": [list(head) for head in chosen],
        "reward": settings.reward,
        "rounds": settings.rounds,
        "top_k": settings.top_k,
        "prompts": len(settings.prompts),
        "prompts_sha256": hashlib.sha256("\n".join(settings.prompts).encode()).hexdigest(),
        "seeds": list(settings.seeds),
        "steps": base.steps,
        "guidance_scale": base.guidance_scale,
        "true_cfg_scale": base.true_cfg_scale,
        "size": [base.frames, base.height, base.width],
        "weights": fingerprint(search.card.source),
        "score": mean_score(scores, best, settings.pairs),
        "score_without_guidance": mean_score(scores, Candidate(None), settings.pairs),
        "note": "The score is that of the search itself, so it is optimistic: validate on fresh prompts and seeds.",
        "versions": versions(),
    }
