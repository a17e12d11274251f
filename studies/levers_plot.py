"""Draw speed-up against quality of levers, and write their tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit_accel_eval.pareto import MARKERS
from dit_accel_eval.statistics import MeanInterval, MedianInterval
from studies.levers_summary import JOIN

matplotlib.use("Agg")

Row = Mapping[str, Any]

PLOTTED = (("psnr", "PSNR against dense (dB)"), ("ssim", "SSIM against dense"))
COLUMNS = (
    *("setting", "clips", "speed-up (CPU time)", "PSNR, dB", "SSIM", "ST-LPIPS"),
    *("captions right", "forwards skipped", "density"),
)
JOINT_COLUMNS = (
    *("setting", "clips", "error / sum of parts", "error / largest part"),
    *("speed-up / product", "PSNR, dB", "PSNR of the sum, dB"),
)


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


def markdown_table(rows: Sequence[Row], composed: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of both tables, with 95 % intervals."""
    yield from header(COLUMNS)
    for row in rows:
        right, dense = row["correct"], row["correct_dense"]
        skipped = f"{row['skipped'].mean:.2f}" if row["skipped"].n else "-"
        cells = [
            *(row["setting"], str(row["clips"]), format_median(row["speedup"])),
            *(format_psnr(row), format_mean(row["ssim"], 3)),
            format_mean(row["st_lpips"], 3) if row["st_lpips"].n else "-",
            *(f"{right.right} (dense {dense.right})", skipped),
            f"{row['density_all_calls'].mean:.2f}",
        ]
        yield f"| {' | '.join(cells)} |"
    if composed:
        yield ""
        yield from header(JOINT_COLUMNS)
    for row in composed:
        ratios = ("error_by_sum", "error_by_largest", "speedup_by_product")
        cells = [
            *(row["setting"], str(row["clips"]), *(format_median(row[name]) for name in ratios)),
            *(format_mean(row["psnr"], 1), format_mean(row["psnr_of_sum"], 1)),
        ]
        yield f"| {' | '.join(cells)} |"


def header(columns: Sequence[str]) -> Iterator[str]:
    """Yield the first two lines of a Markdown table."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"


def format_psnr(row: Row) -> str:
    """Return the mean PSNR as text, with the number of clips that equal dense and are not in it."""
    mean = format_mean(row["psnr"], 1) if row["psnr"].n else "-"
    return f"{mean} ({row['equal']} equal)" if row["equal"] else mean


def format_median(interval: MedianInterval) -> str:
    """Return a median and the ends of its interval, which fewer than six clips do not have."""
    if interval.n < 6:
        return f"{interval.median:.2f}"
    return f"{interval.median:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def format_mean(mean: MeanInterval, digits: int) -> str:
    """Return a mean and the half width of its interval as text."""
    return f"{mean.mean:.{digits}f} +- {mean.half_width:.{digits}f}"
