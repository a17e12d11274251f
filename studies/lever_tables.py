"""Write the tables of levers as Markdown: alone, together, and tuned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from studies.markdown import mean, median, table

Row = Mapping[str, Any]


def setting_table(measured: Sequence[Row]) -> Iterator[str]:
    """Yield the table of levers alone and together."""
    rows = (
        (
            f"`{row['setting']}`",
            median(row["speedup"]),
            mean(row["psnr"]) + (f" ({row['equal']} equal)" if row["equal"] else ""),
            mean(row["ssim"], 3),
            mean(row["st_lpips"], 3),
            "{right} of {n}".format(**row["correct"]),
            f"{row['skipped']['mean']:.2f}" if row["skipped"]["n"] else "-",
        )
        for row in measured
    )
    heading = "Setting | Speed-up, median | PSNR, dB | SSIM | ST-LPIPS | Right | Forwards skipped"
    return table(heading, rows)


def joint_table(composed: Sequence[Row]) -> Iterator[str]:
    """Yield the table of joint settings against their parts."""
    ratios = ("error_by_sum", "error_by_largest", "speedup_by_product")
    rows = (
        (
            f"`{row['setting']}`",
            *(median(row[name]) for name in ratios),
            mean(row["psnr"]),
            mean(row["psnr_of_sum"]),
        )
        for row in composed
    )
    heading = "Setting | Error / sum of parts | Error / largest part | Speed-up / product of parts"
    return table(f"{heading} | PSNR, dB | PSNR of the sum, dB", rows)


def evaluated_table(summary: Row) -> Iterator[str]:
    """Yield the table of the settings of an evaluation."""
    rows = (
        (
            f"`{row['setting']}`",
            row["clips"],
            median(row["speedup"]),
            mean(row["psnr"]),
            mean(row["ssim"], 3),
            mean(row["st_lpips"], 3),
            f"{row['correct']['right']} (dense {row['correct_dense']['right']})",
        )
        for row in summary["settings"]
    )
    return table("Setting | Clips | Speed-up, median | PSNR, dB | SSIM | ST-LPIPS | Right", rows)


def tuned_table(about: Row) -> Iterator[str]:
    """Yield the table of the tuned profile: each lever alone, all together, and the shipped default."""

    def rows() -> Iterator[tuple[str, ...]]:
        for name, figures in about["alone"].items():
            setting = f"{name}: {figures['setting']}" if figures["setting"] else name
            yield setting, "search", f"{figures['speedup']:.2f}", f"{figures['psnr']:.1f}"
        for name, row in (("the profile", "measured"), ("`svg-ear` by default", "default")):
            quality = "{mean:.1f} ({low:.1f} to {high:.1f})".format(**about[row]["psnr"])
            yield name, "fresh", median(about[row]["speedup"]), quality

    return table("Setting | Clips | Speed-up, median | PSNR, dB", rows())
