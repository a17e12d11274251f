"""Summarize levers alone and together: speed, quality, and whether speed-ups multiply and errors add."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dit_accel_eval.statistics import mean_ci, median_ci, proportion_ci
from dit_accel_eval.summary import mark_front

Record = Mapping[str, Any]

FIGURES = ("psnr", "psnr_objects", "ssim", "st_lpips")
JOIN = " + "


def lever_table(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return a row per label: median speed-ups, mean quality, right captions, and what the levers did.

    The mean PSNR leaves out clips that equal dense, which ``equal`` counts.
    """
    rows = []
    for label in dict.fromkeys(r["label"] for r in records):
        labelled = [r for r in records if r["label"] == label]
        row: dict[str, Any] = {"setting": label, "clips": len(labelled), "failed": 0}
        row["speedup"] = median_ci([cpu_speedup(r) for r in labelled])
        row["wall_speedup"] = median_ci([r["dense_seconds"] / r["seconds"] for r in labelled])
        for name in FIGURES:
            row[name] = mean_ci([r.get(name) for r in labelled])
        for name in ("correct", "correct_dense"):
            row[name] = proportion_ci(sum(bool(r[name]) for r in labelled), len(labelled))
        row["density_all_calls"] = mean_ci([r["density"]["all_calls"] for r in labelled])
        row["skipped"] = mean_ci([skipped_share(r) for r in labelled])
        row["equal"] = sum(squared_error(r) == 0 for r in labelled)
        row["idle"] = sum(bool(r["idle_levers"]) for r in labelled)
        rows.append(row)
    mark_front(rows)
    return rows


def composition_table(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Compare joint settings with their parts on the same clips.

    The squared errors of the parts predict the joint one. A ratio to their sum near 1 says that errors add; one to the
    largest part near 1 says that it hides the others; above 1 to the sum, they multiply. A part that was not measured
    leaves its joint setting out.
    """
    clips = {(r["label"], r["prompt"], r["seed"]): r for r in records}
    rows = []
    for label in dict.fromkeys(r["label"] for r in records if JOIN in r["label"]):
        groups = []
        for record in (r for r in records if r["label"] == label):
            parts = [clips.get((p, record["prompt"], record["seed"])) for p in label.split(JOIN)]
            if all(part is not None for part in parts):
                groups.append((record, [part for part in parts if part is not None]))
        if groups:
            rows.append({"setting": label, "clips": len(groups), **compose(groups)})
    return rows


def compose(groups: Sequence[tuple[Record, Sequence[Record]]]) -> dict[str, Any]:
    """Return medians over clips of measured by predicted figures, and the mean PSNR of both."""
    to_sum, to_largest, speeds, predicted = [], [], [], []
    for joint, parts in groups:
        error, errors = squared_error(joint), [squared_error(part) for part in parts]
        if sum(errors):
            to_sum.append(error / sum(errors))
            to_largest.append(error / max(errors))
            predicted.append(-10 * math.log10(sum(errors)))
        speeds.append(cpu_speedup(joint) / math.prod(cpu_speedup(part) for part in parts))
    return {
        "error_by_sum": median_ci(to_sum),
        "error_by_largest": median_ci(to_largest),
        "speedup_by_product": median_ci(speeds),
        "psnr": mean_ci([joint["psnr"] for joint, _ in groups]),
        "psnr_of_sum": mean_ci(predicted),
    }


def squared_error(record: Record) -> float:
    """Return the mean squared error that a PSNR stands for; 0 for equal clips."""
    return float(10 ** (-float(record["psnr"]) / 10))


def cpu_speedup(record: Record) -> float:
    """Return the ratio of processor seconds in the denoising loop."""
    return float(record["dense_cpu_seconds"] / record["cpu_seconds"])


def skipped_share(record: Record) -> float | None:
    """Return the share of the forwards that a cache skipped, or None without a cache."""
    cache = record["lever_effects"].get("cache")
    return cache["skipped"] / cache["forwards"] if cache else None
