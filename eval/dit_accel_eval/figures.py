"""Names and texts of the figures in tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dit_accel.io.tables import format_table
from dit_accel_eval.statistics import MeanInterval, MedianInterval, ProportionInterval
from dit_accel_eval.summary import Record, Row

COLUMNS = {
    "clips": "clips",
    "speedup": "speed-up",
    "density_all": "density, all calls",
    "density_sparse": "density, sparse calls",
    "psnr": "PSNR (dB)",
    "psnr_gain": "PSNR gain",
    "psnr_objects": "PSNR inside objects",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "st_lpips": "ST-LPIPS",
    "cvvdp": "ColorVideoVDP (JOD)",
    "clip_score_gain": "CLIP score gain",
    "flicker": "flicker gain",
    "drift": "drift",
    "correct": "correct captions",
}
DIGITS = {"psnr": 2, "psnr_objects": 2, "psnr_gain": 2, "speedup": 2, "flicker": 4, "drift": 4}
# Space between two columns of a table, and least space between two titles.
GAP, TITLE_GAP = 2, 4


def column_titles(columns: Sequence[str], records: Sequence[Record]) -> dict[str, str]:
    """Return the titles of columns. LPIPS names its network, because two networks give different figures."""
    net = lpips_net(records)
    return {n: COLUMNS[n] + (f" ({net})" if net and n == "lpips" else "") for n in columns}


def lpips_net(records: Sequence[Record]) -> str | None:
    """Return the network whose features LPIPS compared, or None if LPIPS was not measured."""
    return next((r["lpips_net"] for r in records if "lpips_net" in r), None)


def filled_columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns that have a value, and always the clips and PSNR."""
    always = ("clips", "psnr")
    return [c for c in COLUMNS if c in always or any(format_figure(r[c], c) != "-" for r in rows)]


def format_figure(value: Any, column: str) -> str:
    """Return a figure with its interval as text, or a dash for a missing one. Zero has no sign."""
    digits = DIGITS.get(column, 3)
    if isinstance(value, ProportionInterval):
        return f"{value.right} of {value.n}"
    if value is None or (isinstance(value, MeanInterval | MedianInterval) and not value.n):
        return "-"
    if isinstance(value, MeanInterval):
        known = not math.isnan(value.half_width)
        return f"{value.mean:z.{digits}f}" + (f" ± {value.half_width:z.{digits}f}" if known else "")
    if isinstance(value, MedianInterval):
        known = not math.isnan(value.low + value.high)
        ends = f" ({value.low:z.{digits}f} to {value.high:z.{digits}f})" if known else ""
        return f"{value.median:z.{digits}f}{ends}"
    return f"{value:z.{digits}f}" if isinstance(value, float) else str(value)


def format_narrow(rows: Mapping[str, Mapping[str, str]], width: int) -> str:
    """Return a table as text. Columns that do not fit into a width follow in further tables with the same rows."""
    parts = split_columns(rows, width)
    tables = [{name: {c: row[c] for c in part} for name, row in rows.items()} for part in parts]
    return "\n\n".join(map(format_table, tables))


def split_columns(rows: Mapping[str, Mapping[str, str]], width: int) -> Iterator[list[str]]:
    """Yield as many columns at a time as fit beside the names of the rows, and at least one."""
    left = max(map(len, rows))
    part: list[str] = []
    used = left
    for column in next(iter(rows.values())):
        cells = max(len(row[column]) for row in rows.values())
        wide = max(TITLE_GAP + len(column), GAP + cells)
        if part and used + wide > width:
            yield part
            part, used = [], left
        part.append(column)
        used += wide
    yield part
