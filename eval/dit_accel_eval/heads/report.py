"""What a head search found: reward of each head, over the number of heads and over softness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from dit_accel.errors import InvalidSettings
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import to_json
from dit_accel_eval.heads.sampling import Candidate, Pair, mean_score
from dit_accel_eval.heads.search import Head, Search, controls, curves
from dit_accel_eval.statistics import mean_ci


def report(folder: Path) -> list[dict[str, Any]]:
    """Write ``report.json`` and ``report.png`` of a search; returns the rows of its table.

    Raises:
        InvalidSettings: if there is no search, or its first round is not complete.
    """
    search = Search.load(folder)
    scores = search.scores.read()
    rates = search.rates([], scores)
    if rates is None:
        raise InvalidSettings(f"the first round in {folder} is not complete: run the search again")
    rows = [
        row_of(label, candidate, search.settings.pairs, scores)
        for label, candidate in labelled(search).items()
        if mean_score(scores, candidate, search.settings.pairs) is not None
    ]
    singles = [{"head": list(head), "score": rate} for head, rate in rates.items()]
    with atomic_write(folder / "report.json") as temporary:
        told = {"settings": search.settings.__dict__, "rows": rows, "single_heads": singles}
        temporary.write_text(to_json(told, indent=2) + "\n")
    with atomic_write(folder / "report.png") as temporary:
        draw(search, rates, rows).savefig(temporary, dpi=120)
    return rows


def labelled(search: Search) -> dict[str, Candidate]:
    """Controls and curves of a search by their labels."""
    chosen = search.chosen()
    return {**controls(search), **(curves(search, chosen) if chosen else {})}


def row_of(
    label: str,
    candidate: Candidate,
    pairs: Sequence[Pair],
    scores: Mapping[tuple[Candidate, Pair], float],
) -> dict[str, Any]:
    """Mean reward with its 95 % interval, and the paired difference from no guidance."""
    own = [scores[candidate, pair] for pair in pairs]
    without = [scores.get((Candidate(None), pair)) for pair in pairs]
    gains = [a - b for a, b in zip(own, without, strict=True) if b is not None]
    return {
        "label": label,
        "heads": candidate.heads,
        "softness": candidate.softness,
        "clips": len(own),
        "score": mean_ci(own),
        "gain": mean_ci(gains),
    }


def draw(search: Search, rates: Mapping[Head, float], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A heat map of the heads, the reward over their number, and over softness."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    by_label = {row["label"]: row for row in rows}
    heat(figure, left, search, rates, by_label["no guidance"]["score"].mean)
    counts = [r for r in rows if r["label"].endswith(" heads") and r["label"] != "all heads"]
    line(middle, [int(r["label"].split()[0]) for r in counts], counts)
    middle.xaxis.set_major_locator(MaxNLocator(integer=True))
    middle.set(xlabel="number of heads", ylabel=search.settings.reward)
    soft = [r for r in rows if r["label"].startswith("softness ")]
    if counts and soft:
        soft = sorted([*soft, counts[-1]], key=lambda row: row["softness"])
        line(right, [r["softness"] for r in soft], soft)
    right.set(xlabel="softness of all chosen heads", ylabel=search.settings.reward)
    for axes in (middle, right):
        axes.axhline(by_label["no guidance"]["score"].mean, ls="--", c="grey", label="no guidance")
        best = max(
            (r for r in rows if r["label"].startswith("layer ")), key=lambda r: r["score"].mean
        )
        axes.axhline(best["score"].mean, ls=":", c="tab:red", label=f"best layer ({best['heads']})")
        axes.legend(fontsize=8)
    return figure


def heat(
    figure: Figure, axes: Axes, search: Search, rates: Mapping[Head, float], without: float
) -> None:
    """Gain of each single head over no guidance: layers down, heads across; chosen ones are framed."""
    order = search.model.ordered_blocks()
    heads = range(search.model.heads)
    gains = np.array([[rates[(*place, h)] - without for h in heads] for place in order])
    largest = float(np.abs(gains).max()) or 1.0
    image = axes.imshow(gains, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    figure.colorbar(image, ax=axes, label=f"gain in {search.settings.reward}")
    axes.set(xlabel="head", title="one head at a time (framed: chosen)")
    axes.set_xticks(range(search.model.heads))
    axes.set_yticks(range(len(order)), labels=[f"{stack}.{block}" for stack, block in order])
    for stack, block, head in search.chosen() or []:
        corner = (head - 0.5, order.index((stack, block)) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, lw=2, ec="black"))


def line(axes: Axes, at: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> None:
    """Mean rewards with their intervals."""
    means = [row["score"].mean for row in rows]
    widths = [row["score"].half_width for row in rows]
    axes.errorbar(at, means, yerr=widths, marker="o", capsize=3, label="chosen heads")
