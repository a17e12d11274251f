"""Draw the table of all methods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit_accel_eval.pareto import MARKERS

matplotlib.use("Agg")

Row = Mapping[str, Any]

CURVE = re.compile(r"(?P<method>.+) (?P<density>[\d.]+), (?P<schedule>.*dense steps?)")
PLOTTED = (("psnr", "PSNR against dense (dB)"), ("psnr_objects", "inside the objects (dB)"))


def draw(rows: Sequence[Row]) -> Figure:
    """Plot quality against density over all calls: a line per method and schedule, a point per other row."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 2), PLOTTED, strict=True):
        draw_curves(axes, rows, name)
        draw_points(axes, rows, name)
        floors = [f"{row['label']} {row[name].mean:.1f} dB" for row in rows if is_floor(row)]
        axes.set(xlabel="density over all calls", ylabel=label, title="; ".join(floors))
        axes.grid(alpha=0.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, framealpha=0)
    return figure


def draw_curves(axes: Axes, rows: Sequence[Row], name: str) -> None:
    """Plot the rows that were measured at several densities as lines."""
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        match = CURVE.fullmatch(row["label"])
        if match:
            curves.setdefault((match["method"], match["schedule"]), []).append(row)
    methods = list(dict.fromkeys(method for method, _ in curves))
    for (method, schedule), points in curves.items():
        number = methods.index(method)
        axes.errorbar(
            [row["density_all_calls"].mean for row in points],
            [row[name].mean for row in points],
            yerr=[np.nan_to_num(row[name].half_width) for row in points],
            fmt=f"{'--' if schedule.startswith('no') else '-'}{MARKERS[number]}",
            color=matplotlib.colormaps["tab10"](number),
            capsize=3,
            label=f"{method}, {schedule}",
        )


def is_floor(row: Row) -> bool:
    """Return True for dense attention compared with itself."""
    return str(row["label"]).startswith("noise floor")


def draw_points(axes: Axes, rows: Sequence[Row], name: str) -> None:
    """Plot the rows that were measured at one density as points, numbered as in the legend."""
    others = [row for row in rows if not CURVE.fullmatch(row["label"]) and not is_floor(row)]
    for number, row in enumerate(others, start=1):
        point = (row["density_all_calls"].mean, row[name].mean)
        axes.plot(*point, "o", color="grey", ms=3, label=f"{number}: {row['label']}")
        axes.annotate(str(number), point, xytext=(3, 3), textcoords="offset points", fontsize=8)
