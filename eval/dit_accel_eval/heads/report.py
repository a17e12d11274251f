"""Report a head search: the score of each head, over the number of heads and over softness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.errors import InvalidSettings
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import to_json
from dit_accel_eval.heads.objective import Objective
from dit_accel_eval.heads.sampling import Candidate, select_scores
from dit_accel_eval.heads.search import AllScores, Head, Search
from dit_accel_eval.heads.settings import Pair
from dit_accel_eval.plots import naming_results, plain_style, save_png
from dit_accel_eval.statistics import mean_ci

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def report(folder: Path) -> list[dict[str, Any]]:
    """Write ``report.json`` and ``report.png`` of a search, and return the rows of its table.

    Raises:
        InvalidSettings: for a folder without a search, or whose first round is not complete.
    """
    search = Search.load(folder)
    scores = search.scores.read()
    singles = search.head_scores([], scores)
    if singles is None:
        raise InvalidSettings(f"the first round in {folder} is not complete: run the search again")
    rows = [
        summarize(label, candidate, search.settings.pairs, scores, search.objective)
        for label, candidate in label_candidates(search).items()
        if select_scores(scores, candidate, search.settings.pairs) is not None
    ]
    record = {
        "settings": vars(search.settings),
        "rows": rows,
        "single_heads": [{"head": list(head), "score": score} for head, score in singles.items()],
    }
    with atomic_write(folder / "report.json") as temporary:
        temporary.write_text(to_json(record, indent=2) + "\n")
    with naming_results(f"the scores are in {folder / 'report.json'}"), plain_style():
        save_png(folder / "report.png", plot(search, singles, rows), dpi=120)
    return rows


def label_candidates(search: Search) -> dict[str, Candidate]:
    """Return the controls and the curves of a search by their labels."""
    chosen = search.chosen()
    return {**search.controls(), **(search.curves(chosen) if chosen else {})}


def summarize(
    label: str,
    candidate: Candidate,
    pairs: Sequence[Pair],
    scores: AllScores,
    objective: Objective,
) -> dict[str, Any]:
    """Return the value of a candidate and its paired gain over no guidance, with 95 % intervals."""
    clips = [scores[candidate, pair] for pair in pairs]
    paired = [pair for pair in pairs if (Candidate(None), pair) in scores]
    guided = objective.spread([scores[candidate, pair] for pair in paired])
    unguided = objective.spread([scores[Candidate(None), pair] for pair in paired])
    row = {
        "label": label,
        "heads": candidate.heads,
        "softness": candidate.softness,
        "clips": len(clips),
        "score": mean_ci(objective.spread(clips)),
        "gain": mean_ci([a - b for a, b in zip(guided, unguided, strict=True)]),
    }
    return {**row, "accepted": objective.accepts(clips)} if objective.thresholds else row


def plot(
    search: Search, singles: Mapping[Head, float], rows: Sequence[Mapping[str, Any]]
) -> Figure:
    """Return a heat map of the heads, and the score over their number and over softness."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    unguided = next(row for row in rows if row["label"] == "no guidance")["score"].mean
    plot_single_heads(left, search, singles, unguided)
    counts = [r for r in rows if r["label"].endswith(" heads") and r["label"] != "all heads"]
    plot_scores(middle, [int(row["label"].split()[0]) for row in counts], counts)
    middle.xaxis.set_major_locator(MaxNLocator(integer=True))
    middle.set(xlabel="number of heads", ylabel=search.settings.reward)
    soft = [row for row in rows if row["label"].startswith("softness ")]
    if counts and soft:
        soft = sorted([*soft, counts[-1]], key=lambda row: row["softness"])
        plot_scores(right, [row["softness"] for row in soft], soft)
    right.set(xlabel="softness of all chosen heads", ylabel=search.settings.reward)
    layers = [row for row in rows if row["label"].startswith("layer ")]
    best = max(layers, key=lambda row: float(row["score"].mean))
    for axes in (middle, right):
        axes.axhline(unguided, ls="--", c="grey", label="no guidance")
        axes.axhline(best["score"].mean, ls=":", c="tab:red", label=f"best layer ({best['heads']})")
        axes.legend(fontsize=8)
    return figure


def plot_single_heads(
    axes: Axes, search: Search, singles: Mapping[Head, float], unguided: float
) -> None:
    """Draw the gain of each single head over no guidance. Rows are layers; chosen heads are framed."""
    import numpy as np
    from matplotlib.patches import Rectangle

    layers, heads = search.model.ordered_blocks(), range(search.model.heads)
    gains = np.array([[singles[(*layer, h)] - unguided for h in heads] for layer in layers])
    largest = float(np.abs(gains).max()) or 1.0
    image = axes.imshow(gains, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    axes.figure.colorbar(image, ax=axes, label=f"gain in {search.settings.reward}")
    axes.set(xlabel="head", title="one head at a time (chosen heads are framed)")
    axes.set_xticks(heads)
    axes.set_yticks(range(len(layers)), labels=[f"{name}.{block}" for name, block in layers])
    for block_list, block, head in search.chosen() or []:
        corner = (head - 0.5, layers.index((block_list, block)) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, lw=2, ec="black"))


def plot_scores(axes: Axes, positions: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the mean scores with their intervals."""
    means = [row["score"].mean for row in rows]
    widths = [row["score"].half_width for row in rows]
    axes.errorbar(positions, means, yerr=widths, marker="o", capsize=3, label="chosen heads")
