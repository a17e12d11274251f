"""Plot a search: every setting that was tried, and the targets."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from optuna.trial import TrialState

from dit_accel_eval.tune.goal import read_measurements
from dit_accel_eval.tune.ladders import CACHES, NONE
from dit_accel_eval.tune.search import Search

MARKERS = {"svg2": "o", "svg-ear": "s", "re-ttention": "^", "dense": "D"}


def draw(search: Search) -> Figure:
    """Plot speed-up against each metric. Markers show the method, and colours the cache.

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
            colour = colour_of(trial.params.get("cache", NONE))
            fill = colour if trial.state == TrialState.COMPLETE else "none"
            axes.plot(*point, MARKERS[method], c=colour, mfc=fill, alpha=0.8)
            if winner is not None and trial.number == winner.number:
                axes.plot(*point, "o", ms=16, mfc="none", mec="black")
        for method, marker in MARKERS.items():
            if method in search.space.methods or (method == "dense" and search.space.has_levers):
                axes.plot([], [], marker, c="black", mfc="none", label=method)
        for cache in search.space.caches:
            axes.plot([], [], "o", c=colour_of(cache), label=f"{cache} cache")
        axes.plot([], [], "o", c="grey", mfc="none", label="stopped early")
        if metric in bounds:
            axes.axhline(bounds[metric], ls="--", c="grey", label="target")
        if search.goal.speedup is not None:
            axes.axvline(search.goal.speedup, ls="--", c="grey", label="target")
        axes.set(xlabel="speed-up of the denoising loop (median)", ylabel=f"{metric} (mean)")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return figure


def colour_of(cache: str) -> str:
    """Return the colour of settings with a kind of cache, or without one."""
    return f"C{1 + CACHES.index(cache)}" if cache in CACHES else "C0"
