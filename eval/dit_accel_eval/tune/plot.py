"""A search as a picture: every setting that was tried, and the targets."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from optuna.trial import TrialState

from dit_accel_eval.tune.search import Search, measured_of

matplotlib.use("Agg")

MARKERS = {"svg2": "o", "svg-ear": "s", "re-ttention": "^"}


def draw(search: Search) -> Figure:
    """Speed-up against each metric; hollow points were given up early, the ring is the best that holds all."""
    metrics = search.goal.metrics
    figure = Figure(figsize=(6.5 * len(metrics), 4.8), layout="constrained")
    bounds = {t.metric: t.bound for t in search.goal.targets}
    winner = next(iter(search.winners()), None)
    for axes, metric in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        for trial in search.measured():
            found, method = measured_of(trial), trial.params["method"]
            at = found.speedup, float(np.mean(found.values[metric]))
            whole = trial.state == TrialState.COMPLETE
            colour = f"C{list(MARKERS).index(method)}"
            axes.plot(*at, MARKERS[method], c=colour, mfc=colour if whole else "none", alpha=0.8)
            if winner is not None and trial.number == winner.number:
                axes.plot(*at, "o", ms=16, mfc="none", mec="black")
        for method, marker in MARKERS.items():
            if method in search.space.methods:
                axes.plot([], [], marker, c=f"C{list(MARKERS).index(method)}", label=method)
        axes.plot([], [], "o", c="grey", mfc="none", label="given up early")
        if metric in bounds:
            axes.axhline(bounds[metric], ls="--", c="grey", label="target")
        if search.goal.speedup is not None:
            axes.axvline(search.goal.speedup, ls="--", c="grey", label="target")
        axes.set(xlabel="speed-up of the denoising loop (median)", ylabel=f"{metric} (mean)")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure
