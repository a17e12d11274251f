"""Export the head set that a search found."""

from __future__ import annotations

import hashlib
from typing import Any

from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import fingerprint
from dit_accel.guidance import HeadSet, parse_heads
from dit_accel_eval.heads.sampling import Candidate
from dit_accel_eval.heads.search import AllScores, Head, Search


def best_candidate(search: Search, scores: AllScores) -> Candidate:
    """Return the best of the curves of a complete search: first k heads, or softness of all heads.

    Candidates that reach the thresholds of the reward come before others.

    Raises:
        InvalidSettings: if the search chose no head.
    """
    candidates = list(search.curves(search.chosen() or []).values())
    if not candidates:
        raise InvalidSettings(describe_failure(search))

    def rank(candidate: Candidate) -> tuple[bool, float]:
        value = search.evaluate(candidate, scores)
        assert value is not None
        return search.accepts(candidate, scores), value

    return max(candidates, key=rank)


def describe_failure(search: Search) -> str:
    """Describe why a complete search chose no head."""
    least = ", ".join(f"{name} {value:g}" for name, value in search.objective.thresholds.items())
    return f"no head reached the thresholds of reward {search.settings.reward} ({least}): choose another reward"


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
    settings = {**strength, **search.settings.perturbed_attention}
    return HeadSet(heads.model, heads.heads, settings, provenance(search, chosen, best))


def provenance(search: Search, chosen: list[Head], best: Candidate) -> dict[str, Any]:
    """Return how a head set was found: the search, its scores and the versions."""
    from dit_accel.generation.identity import versions

    settings, base, scores = search.settings, search.base, search.scores.read()
    return {
        "method": "greedy rounds over single heads (HeadHunter, arXiv 2506.10978)",
        "order": [list(head) for head in chosen],
        "reward": settings.reward,
        "pairing": settings.pairing,
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
        "score": search.evaluate(best, scores),
        "score_without_guidance": search.evaluate(Candidate(None), scores),
        "note": "The score is that of the search itself, so it is optimistic: validate on fresh prompts and seeds.",
        "versions": versions(),
    }
