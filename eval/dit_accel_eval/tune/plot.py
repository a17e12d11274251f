"""Plot a search: every setting that was tried, and the targets."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from optuna.trial import TrialState

from dit_accel_eval.tune.search import Search, read_measurements

MARKERS = {"svg2": "o", "svg-ear": "s", "re-ttention": "^"}


def draw(search: Search) -> Figure:
    """Plot speed-up against each metric.

    Hollow points are settings that were stopped early. The ring marks the best setting that holds all targets.
    """
    metrics = search.goal.metrics
    figure = Figure(figsize=(6.5 * len(metrics), 4.8), layout="constrained")
    bounds = {t.metric: t.bound for t in search.goal.targets}
    winner = next(iter(search.winners()), None)
    for axes, metric in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        for trial in search.measured():
            measured, method = read_measurements(trial), trial.params["method"]
            point = measured.speedup, float(np.mean(measured.values[metric]))
            colour = f"C{list(MARKERS).index(method)}"
            fill = colour if trial.state == TrialState.COMPLETE else "none"
            axes.plot(*point, MARKERS[method], c=colour, mfc=fill, alpha=0.8)
            if winner is not None and trial.number == winner.number:
                axes.plot(*point, "o", ms=16, mfc="none", mec="black")
        for method, marker in MARKERS.items():
            if method in search.space.methods:
                axes.plot([], [], marker, c=f"C{list(MARKERS).index(method)}", label=method)
        axes.plot([], [], "o", c="grey", mfc="none", label="stopped early")
        if metric in bounds:
            axes.axhline(bounds[metric], ls="--", c="grey", label="target")
        if search.goal.speedup is not None:
            axes.axvline(search.goal.speedup, ls="--", c="grey", label="target")
        axes.set(xlabel="speed-up of the denoising loop (median)", ylabel=f"{metric} (mean)")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure
