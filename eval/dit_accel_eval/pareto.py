"""Plot speed-up against quality: a point per setting, with intervals, front and noise floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit_accel_eval.plots import Entry, add_legend, plain_style
from dit_accel_eval.summary import Row, is_floor

MARKERS = "osD^vP*X<>hp"
PLOTTED = {"psnr": "PSNR against dense (dB)", "lpips": "LPIPS against dense (lower is closer)"}
# Legends with longer labels have one column.
LONG_LABEL = 45


def plot_pareto(rows: Sequence[Row], title: str, ink: str = "black") -> Figure:
    """Return a figure of the rows that `summarize` returns: PSNR, and LPIPS if it was measured.

    Args:
        rows: One row per setting.
        title: Line above the plots.
        ink: Colour of axes and letters.
    """
    names = [name for name in PLOTTED if name == "psnr" or any(row[name].n for row in rows)]
    with plain_style(ink):
        figure = Figure(figsize=(11 if len(names) > 1 else 8, 4.8), layout="constrained")
        figure.suptitle(fill(title, 100), fontsize=10)
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        entries: list[Entry] = []
        for axes, name in zip(panels, names, strict=True):
            entries = draw(axes, rows, name)
            axes.set(xlabel="speed-up of the denoising loop (median)", ylabel=PLOTTED[name])
        columns = 1 if any(len(label) > LONG_LABEL for _, label in entries) else 2
        place = {"loc": "outside lower center", "ncols": columns}
        add_legend(figure, entries, **place, fontsize=8, framealpha=0)
    return figure


def draw(axes: Axes, rows: Sequence[Row], name: str) -> list[Entry]:
    """Plot points with their intervals. Return the entries of the legend.

    Floors are horizontal lines, and a line joins the front.
    """
    points = [r for r in rows if r["speedup"].n and r[name].n]
    entries: list[Entry] = []
    for number, row in enumerate(points):
        entries.append((draw_row(axes, row, name, number), row["setting"]))
    front = sorted((r["speedup"].median, r[name].mean) for r in points if r["front"])
    if len(front) > 1:
        (line,) = axes.plot(*zip(*front, strict=True), lw=1, color="grey", zorder=0)
        entries.append((line, "front by PSNR"))
    if all(is_floor(row) for row in points):
        text = "no setting has a speed-up and a finite figure"
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.axvline(1.0, lw=1, ls="--", color="grey", zorder=0)
    axes.grid(alpha=0.25)
    return entries


def draw_row(axes: Axes, row: Row, name: str, number: int) -> object:
    """Plot one row in the colour and with the marker of a number, and return its handle."""
    colour = matplotlib.colormaps["tab10"](number % 10)
    figure, speed = row[name], row["speedup"]
    if is_floor(row):
        return axes.axhline(figure.mean, ls=":", color=colour)
    return axes.errorbar(
        speed.median,
        figure.mean,
        xerr=None if speed.n < 6 else [[speed.median - speed.low], [speed.high - speed.median]],
        yerr=None if math.isnan(figure.half_width) else figure.half_width,
        fmt=MARKERS[number % len(MARKERS)],
        color=colour,
        capsize=3,
    )
