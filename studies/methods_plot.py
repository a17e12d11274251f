"""What the table of all methods says, drawn and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit_accel_eval.pareto import MARKERS, finite
from dit_accel_eval.statistics import Estimate

matplotlib.use("Agg")

Row = Mapping[str, Any]

CURVE = re.compile(r"(?P<method>.+) (?P<density>[\d.]+), (?P<schedule>.*dense steps?)")
COLUMNS = (
    *("setting", "clips", "density, sparse calls", "density, all calls"),
    *("PSNR, dB", "inside objects, dB", "SSIM", "captions right"),
)
SHOWN = (("psnr", "PSNR against dense (dB)"), ("psnr_objects", "inside the objects (dB)"))


def draw(rows: Sequence[Row]) -> Figure:
    """Quality against density over all calls: one line per method and schedule, a point for each other row."""
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 2), SHOWN, strict=True):
        draw_curves(axes, rows, name)
        draw_points(axes, rows, name)
        floors = [f"{row['label']} {row[name].mean:.1f} dB" for row in rows if is_floor(row)]
        axes.set(xlabel="density over all calls", ylabel=label, title="; ".join(floors))
        axes.grid(alpha=0.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, framealpha=0)
    return figure


def draw_curves(axes: Axes, rows: Sequence[Row], name: str) -> None:
    """Rows at several densities, joined."""
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        match = CURVE.fullmatch(row["label"])
        if match:
            curves.setdefault((match["method"], match["schedule"]), []).append(row)
    methods = list(dict.fromkeys(method for method, _ in curves))
    for (method, schedule), own in curves.items():
        number = methods.index(method)
        axes.errorbar(
            [row["density_all_calls"].mean for row in own],
            [row[name].mean for row in own],
            yerr=[finite(row[name].half_width) or 0.0 for row in own],
            fmt=f"{'--' if schedule.startswith('no') else '-'}{MARKERS[number]}",
            color=matplotlib.colormaps["tab10"](number),
            capsize=3,
            label=f"{method}, {schedule}",
        )


def is_floor(row: Row) -> bool:
    """Dense attention against itself."""
    return str(row["label"]).startswith("noise floor")


def draw_points(axes: Axes, rows: Sequence[Row], name: str) -> None:
    """Rows at one density, numbered as the legend says."""
    others = [row for row in rows if not CURVE.fullmatch(row["label"]) and not is_floor(row)]
    for number, row in enumerate(others, start=1):
        place = (row["density_all_calls"].mean, row[name].mean)
        axes.plot(*place, "o", color="grey", ms=3, label=f"{number}: {row['label']}")
        axes.annotate(str(number), place, xytext=(3, 3), textcoords="offset points", fontsize=8)


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table, with 95 % intervals."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for row in rows:
        cells = [
            row["label"],
            str(row["clips"]),
            f"{row['density_sparse_calls'].mean:.2f}",
            f"{row['density_all_calls'].mean:.2f}",
            told(row["psnr"], 1),
            told(row["psnr_objects"], 1),
            told(row["ssim"], 3),
            f"{row['correct']} (dense {row['correct_dense']})",
        ]
        yield f"| {' | '.join(cells)} |"


def told(figure: Estimate, digits: int) -> str:
    """Mean and half width."""
    return f"{figure.mean:.{digits}f} +- {figure.half_width:.{digits}f}"
