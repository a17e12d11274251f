"""Draw speed-up against quality of levers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit_accel_eval.pareto import MARKERS
from dit_accel_eval.tune.targets import FINEST
from studies.levers_summary import JOIN

matplotlib.use("Agg")

Row = Mapping[str, Any]

PLOTTED = (("psnr", "PSNR against dense (dB)"), ("ssim", "SSIM against dense"))


def draw(rows: Sequence[Row]) -> Figure:
    """Plot a line through the thresholds of each kind of setting, with intervals, and the front in grey."""
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 2), PLOTTED, strict=True):
        draw_curves(axes, rows, name)
        front = sorted(
            (row["speedup"].median, row[name].mean) for row in rows if row["front"] and row[name].n
        )
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), lw=5, color="lightgrey", zorder=0, label="front")
        axes.axvline(1.0, lw=1, ls="--", color="grey", zorder=0)
        axes.set(xlabel="speed-up of the denoising loop (median, CPU time)", ylabel=label)
        axes.grid(alpha=0.25)
        if name == "psnr":
            axes.set_ylim(top=FINEST)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, framealpha=0)
    return figure


def draw_curves(axes: Axes, rows: Sequence[Row], name: str) -> None:
    """Plot the rows that differ in a threshold only as one line. Those of one part have solid lines."""
    curves: dict[str, list[Row]] = {}
    for row in rows:
        curves.setdefault(curve_of(row["setting"]), []).append(row)
    firsts = list(dict.fromkeys(curve.split(JOIN)[0] for curve in curves))
    for curve, points in curves.items():
        number, count = firsts.index(curve.split(JOIN)[0]), curve.count(JOIN)
        speeds = [row["speedup"] for row in points]
        axes.errorbar(
            [speed.median for speed in speeds],
            [row[name].mean for row in points],
            xerr=np.nan_to_num([[s.median - s.low, s.high - s.median] for s in speeds]).T,
            yerr=[np.nan_to_num(row[name].half_width) for row in points],
            fmt=f"{('-', '--', ':')[min(count, 2)]}{MARKERS[number]}",
            mfc=None if count == 0 else "none",
            color=matplotlib.colormaps["tab10"](number),
            capsize=3,
            label=curve,
        )


def curve_of(setting: str) -> str:
    """Return a label without the threshold of its first part."""
    first, *rest = setting.split(JOIN)
    return JOIN.join([first.split(" ")[0], *rest])
