"""Plot speed-up against quality: a point per setting, with intervals, front and noise floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit_accel_eval.summary import Row, is_floor

matplotlib.use("Agg")

MARKERS = "osD^vP*X<>hp"
INK_PARTS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
PLOTTED = (("psnr", "PSNR against dense (dB)"), ("lpips", "LPIPS against dense (lower is closer)"))


def plot_pareto(
    rows: Sequence[Row], title: str, lpips_reason: str | None, ink: str = "black"
) -> Figure:
    """Return a figure of the rows that `summarize` returns.

    Args:
        rows: One row per setting.
        title: Line above the plots.
        lpips_reason: Why LPIPS was not measured. The figure shows it instead of the points.
        ink: Colour of axes and letters.
    """
    colours: dict[Any, str] = dict.fromkeys(INK_PARTS, ink)
    with matplotlib.rc_context(colours):
        return _plot(rows, title, lpips_reason)


def _plot(rows: Sequence[Row], title: str, lpips_reason: str | None) -> Figure:
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, (name, label) in zip(figure.subplots(1, 2), PLOTTED, strict=True):
        draw(axes, rows, name)
        axes.set(xlabel="speed-up of the denoising loop (median)", ylabel=label)
        if name == "lpips" and not any(r["lpips"].n for r in rows):
            axes.text(0.5, 0.5, fill(f"not measured: {lpips_reason}", 44), ha="center", va="center")
            axes.texts[-1].set_transform(axes.transAxes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=2, fontsize=8, framealpha=0
        )
    return figure


def draw(axes: Axes, rows: Sequence[Row], name: str) -> None:
    """Plot points with their intervals. Floors are horizontal lines, and a line joins the front."""
    points = [r for r in rows if r["speedup"].n and r[name].n]
    colours = matplotlib.colormaps["tab10"]
    for number, row in enumerate(points):
        colour, figure, speed = colours(number % 10), row[name], row["speedup"]
        if is_floor(row):
            axes.axhline(figure.mean, ls=":", color=colour, label=row["setting"])
            continue
        axes.errorbar(
            speed.median,
            figure.mean,
            xerr=None if speed.n < 6 else [[speed.median - speed.low], [speed.high - speed.median]],
            yerr=None if math.isnan(figure.half_width) else figure.half_width,
            fmt=MARKERS[number % len(MARKERS)],
            color=colour,
            capsize=3,
            label=row["setting"],
        )
    front = sorted((r["speedup"].median, r[name].mean) for r in points if r["front"])
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), lw=1, color="grey", zorder=0, label="front by PSNR")
    axes.axvline(1.0, lw=1, ls="--", color="grey", zorder=0)
    axes.grid(alpha=0.25)
