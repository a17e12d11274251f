"""Speed-up against quality, one point per setting, with intervals, front and noise floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit_accel_eval.summary import is_floor

matplotlib.use("Agg")

Row = Mapping[str, Any]

MARKERS = "osD^vP*X<>hp"
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
SHOWN = (("psnr", "PSNR against dense (dB)"), ("lpips", "LPIPS against dense (lower is nearer)"))


def pareto(rows: Sequence[Row], title: str, lpips_reason: str | None, ink: str = "black") -> Figure:
    """A figure of `summarize`'s rows in one colour for lines and letters; LPIPS that was not measured says
    why.
    """
    inked: dict[Any, str] = dict.fromkeys(INKED, ink)
    with matplotlib.rc_context(inked):
        return _pareto(rows, title, lpips_reason)


def _pareto(rows: Sequence[Row], title: str, lpips_reason: str | None) -> Figure:
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, (name, label) in zip(figure.subplots(1, 2), SHOWN, strict=True):
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
    """Points with their intervals in both directions; floors are lines, the front is joined."""
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
            yerr=finite(figure.half_width),
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


def finite(width: float) -> float | None:
    """An interval of a single clip has no width."""
    return width if width == width else None
