"""Records of an evaluation to one row per setting, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dit_accel_eval.statistics import Estimate, estimate, middle, share

Record = Mapping[str, Any]

FIGURES = ("psnr", "psnr_objects", "ssim", "lpips", "clip_score_gain", "flicker", "drift")
COSTS = ("seconds", "density_sparse", "density_all")


def summarize(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row per setting, in the order of the records: mean, half width of the 95 % interval and n of every
    figure over clips, the median speed-up, the gain in PSNR over the first setting on the same clips, captions
    right, density by layer, and the clip with the lowest PSNR.
    """
    rows = []
    first = next((r["setting"] for r in records if not is_floor(r)), None)
    base = {(r["prompt"], r["seed"]): r for r in records if r["setting"] == first}
    for label in dict.fromkeys(r["setting"] for r in records):
        own = [r for r in records if r["setting"] == label]
        row: dict[str, Any] = {"setting": label, "clips": len(own)}
        for name in (*FIGURES, *COSTS):
            row[name] = estimate([r.get(name) for r in own])
        row["speedup"] = middle([r.get("speedup") for r in own])
        row["psnr_gain"] = gain(own, base)
        for name in ("correct", "correct_dense"):
            verdicts = [bool(r[name]) for r in own if name in r]
            row[name] = share(verdicts) if verdicts else None
        row["layers"] = by_layer(own)
        row["fallbacks"] = dict.fromkeys(reason for r in own for reason in r.get("fallbacks", ()))
        row["fallbacks"] = list(row["fallbacks"])
        row["failed"] = sum("failed" in r for r in own)
        row["reasons"] = list(dict.fromkeys(r["failed"] for r in own if "failed" in r))
        row["worst"] = worst(own)
        rows.append(row)
    mark_front(rows)
    return rows


def gain(records: Sequence[Record], base: Mapping[Any, Record]) -> Estimate:
    """Of the PSNR of a setting over that of another, clip by clip; clips that equal dense in one are left out."""
    pairs = [(r, base.get((r["prompt"], r["seed"]), {})) for r in records]
    known = [(a["psnr"], b["psnr"]) for a, b in pairs if "psnr" in a and "psnr" in b]
    return estimate([float(a) - float(b) for a, b in known])


def by_layer(records: Sequence[Record]) -> dict[str, float]:
    """Mean density of the sparse calls of each layer over clips."""
    names = dict.fromkeys(name for r in records for name in r.get("layers", ()))
    values = {n: [r["layers"][n] for r in records if n in r["layers"]] for n in names}
    return {name: sum(own) / len(own) for name, own in values.items()}


def worst(records: Sequence[Record]) -> dict[str, Any] | None:
    """The clip with the lowest PSNR, of those that could be measured."""
    measured = [r for r in records if "failed" not in r]
    if not measured:
        return None
    lowest = min(measured, key=lambda r: float(r["psnr"]))
    return {name: lowest[name] for name in ("prompt", "seed", "psnr")}


def mark_front(rows: Sequence[dict[str, Any]]) -> None:
    """``front`` is True where neither another row nor dense itself is at least as fast and as near to dense,
    and better in one; the floors stand outside.
    """
    dense = (1.0, math.inf)
    for row in rows:
        others = [dense, *map(place, rows)]
        row["front"] = place(row) is not None and not any(beats(o, place(row)) for o in others)


def place(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Speed-up and PSNR of a row, if both are known of all its clips and it is no floor; infinite if all equal
    dense.
    """
    speed, psnr = row["speedup"], row["psnr"]
    if is_floor(row) or not speed.n or row["failed"]:
        return None
    return speed.median, psnr.mean if psnr.n else math.inf


def is_floor(row: Mapping[str, Any]) -> bool:
    return str(row["setting"]).startswith("floor:")


def beats(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    """At least as good in both, and not the same."""
    if one is None or other is None or one == other:
        return False
    return one[0] >= other[0] and one[1] >= other[1]
