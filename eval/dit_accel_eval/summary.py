"""Summarize the records of an evaluation in one row per setting, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dit_accel_eval.statistics import MeanInterval, mean_ci, median_ci, proportion_ci

Record = Mapping[str, Any]
Row = Mapping[str, Any]

FIGURES = (
    *("psnr", "psnr_objects", "ssim", "lpips", "st_lpips", "cvvdp"),
    *("clip_score_gain", "flicker", "drift"),
)
COSTS = ("seconds", "density_sparse", "density_all")


def summarize(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return a row per setting, in the order of the records.

    A row holds the mean of every figure, the median speed-up, the gain in PSNR over the first setting on the same
    clips, the number of correct captions, the density by layer, the worst clip, and whether the row is on the front.
    """
    first = next((r["setting"] for r in records if not is_floor(r)), None)
    base = {(r["prompt"], r["seed"]): r for r in records if r["setting"] == first}
    labels = dict.fromkeys(r["setting"] for r in records)
    rows = [_row(label, [r for r in records if r["setting"] == label], base) for label in labels]
    mark_front(rows)
    return rows


def _row(label: str, records: Sequence[Record], base: Mapping[Any, Record]) -> dict[str, Any]:
    row: dict[str, Any] = {"setting": label, "clips": len(records)}
    for name in (*FIGURES, *COSTS):
        row[name] = mean_ci([r.get(name) for r in records])
    row["speedup"] = median_ci([r.get("speedup") for r in records])
    without = [r["no_effect"] for r in records if r.get("no_effect")]
    row["no_effect"] = {"clips": len(without), "reasons": list(dict.fromkeys(without))}
    row["psnr_gain"] = psnr_gain(records, base)
    for name in ("correct", "correct_dense"):
        verdicts = [bool(r[name]) for r in records if name in r]
        row[name] = proportion_ci(sum(verdicts), len(verdicts)) if verdicts else None
    row["layers"] = density_by_layer(records)
    row["fallbacks"] = list(dict.fromkeys(f for r in records for f in r.get("fallbacks", ())))
    row["failed"] = sum("failed" in r for r in records)
    row["reasons"] = list(dict.fromkeys(r["failed"] for r in records if "failed" in r))
    row["worst"] = worst_clip(records)
    return row


def psnr_gain(records: Sequence[Record], base: Mapping[Any, Record]) -> MeanInterval:
    """Return the mean difference in PSNR from other records by clip, without clips that equal dense in one."""
    pairs = [(r, base.get((r["prompt"], r["seed"]), {})) for r in records]
    gains = [float(a["psnr"]) - float(b["psnr"]) for a, b in pairs if "psnr" in a and "psnr" in b]
    return mean_ci(gains)


def density_by_layer(records: Sequence[Record]) -> dict[str, float]:
    """Return the mean density of the sparse calls of each layer over clips."""
    layers = dict.fromkeys(layer for r in records for layer in r.get("layers", ()))
    values = {n: [r["layers"][n] for r in records if n in r.get("layers", ())] for n in layers}
    return {layer: sum(densities) / len(densities) for layer, densities in values.items()}


def worst_clip(records: Sequence[Record]) -> dict[str, Any] | None:
    """Return the measured clip with the lowest PSNR."""
    measured = [r for r in records if "failed" not in r]
    if not measured:
        return None
    lowest = min(measured, key=lambda r: float(r["psnr"]))
    return {name: lowest[name] for name in ("prompt", "seed", "psnr")}


def mark_front(rows: Sequence[dict[str, Any]]) -> None:
    """Set ``front`` to True in the rows that neither another row nor dense attention beats. Floors are not on it."""
    dense = (1.0, math.inf)
    for row in rows:
        point = speed_and_quality(row)
        others = [dense, *map(speed_and_quality, rows)]
        row["front"] = point is not None and not any(beats(other, point) for other in others)


def speed_and_quality(row: Row) -> tuple[float, float] | None:
    """Return the speed-up and PSNR of a row, or None for a floor or a row with a clip that was not measured.

    PSNR is infinite if all clips equal dense.
    """
    speed, psnr = row["speedup"], row["psnr"]
    if is_floor(row) or not speed.n or row["failed"]:
        return None
    return speed.median, psnr.mean if psnr.n else math.inf


def is_floor(row: Row) -> bool:
    """Return True for the noise floor."""
    return str(row["setting"]).startswith("floor:")


def beats(first: tuple[float, float] | None, second: tuple[float, float]) -> bool:
    """Return True if the first point is at least as good in both figures, and better in one."""
    return first is not None and first != second and first[0] >= second[0] and first[1] >= second[1]
