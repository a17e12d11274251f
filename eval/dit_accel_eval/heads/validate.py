"""Found heads on fresh prompts and seeds, beside what they must beat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dit_accel.errors import InvalidSettings
from dit_accel.generation.distributed import this_process
from dit_accel.generation.loading import load_pipeline
from dit_accel.guidance import parse_heads
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import to_json
from dit_accel_eval.heads.report import row_of
from dit_accel_eval.heads.rewards import check_reward, find_reward
from dit_accel_eval.heads.sampling import (
    Candidate,
    Pair,
    Scores,
    mean_score,
    same_cost_steps,
    score_candidate,
)
from dit_accel_eval.heads.search import (
    Search,
    best_candidate,
    compare,
    controls,
    is_complete,
    request_of,
)


def validate(folder: Path, pairs: Sequence[Pair], quiet: bool = False) -> list[dict[str, Any]]:
    """Score the found heads, no guidance, no guidance at the same cost, the best whole layer, all heads and
    random sets on pairs that the search did not see; writes ``validation.json``. Resumes.

    Raises:
        InvalidSettings: if the search is not complete, or shares a pair with these.
    """
    search = Search.load(folder)
    compare(folder / "search.json", request_of(search.settings, search.base, search.card))
    if not is_complete(search):
        raise InvalidSettings(f"the search in {folder} is not complete: run it again first")
    check_reward(search.settings.reward, tuple(prompt for prompt, _ in pairs))
    seen = set(search.settings.pairs) & set(pairs)
    if seen:
        prompt, seed = min(seen)
        raise InvalidSettings(
            f"the search has seen {prompt!r} with seed {seed}: give fresh prompts or seeds"
        )
    rows = rows_of(search)
    request = json.loads(to_json({"validated": json.loads((folder / "search.json").read_text())}))
    scores = Scores.of(folder / "validation", request, (0, 1))
    scores.folder.mkdir(exist_ok=True)
    reward, pipe = find_reward(search.settings.reward), None
    with tqdm(total=len(rows) * len(pairs), desc="clips", disable=quiet or None) as bar:
        for candidate in rows.values():
            done = scores.read()
            if mean_score(done, candidate, pairs) is not None:
                bar.update(len(pairs))
                continue
            if pipe is None:
                pipe = load_pipeline(
                    search.card, this_process().load_options(search.base.load_options)
                )
                pipe.set_progress_bar_config(disable=True)
            arguments = (candidate, pairs, search.settings.batch, reward, scores, done)
            for clips in score_candidate(pipe, search.base, *arguments):
                bar.update(clips)
    found = scores.read()
    table = [row_of(label, candidate, pairs, found) for label, candidate in rows.items()]
    with atomic_write(folder / "validation.json") as temporary:
        temporary.write_text(to_json({"rows": table, "pairs": len(pairs)}, indent=2) + "\n")
    return table


def rows_of(search: Search) -> dict[str, Candidate]:
    """What is validated, by label."""
    scores, pairs = search.scores.read(), search.settings.pairs
    known = controls(search)
    layers = {label: c for label, c in known.items() if label.startswith("layer ")}
    means = {label: mean_score(scores, layer, pairs) for label, layer in layers.items()}
    best = max((mean, label) for label, mean in means.items() if mean is not None)[1]
    kept = best_candidate(search, scores)
    found = parse_heads(kept.heads or "", search.model)
    base = search.base
    if base.steps is None:
        raise InvalidSettings(
            "the search left the number of steps to the pipeline: search with --steps"
        )
    longer = same_cost_steps(
        base.steps, base.guidance_scale, search.card.family, found, base.true_cfg_scale
    )
    return {
        "no guidance": Candidate(None),
        "no guidance, same cost": Candidate(None, steps=longer),
        "found heads": kept,
        f"best {best}": layers[best],
        "all heads": known["all heads"],
        **{label: c for label, c in known.items() if label.startswith("random")},
    }
