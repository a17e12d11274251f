"""Clips made anywhere, compared pair by pair."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dit_accel.errors import InvalidSettings, first_line
from dit_accel.generation.render import versions
from dit_accel.io.atomic import atomic_write, check_writable
from dit_accel.io.jsonl import to_json
from dit_accel.io.tables import format_table
from dit_accel_eval.comparison import similarity_metrics
from dit_accel_eval.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES, difference, read_clip, write_webm
from dit_accel_eval.page import Page, Panel, Player, TableRow
from dit_accel_eval.report import column_titles, format_figure
from dit_accel_eval.statistics import mean_ci

FIGURES = ("psnr", "ssim", "lpips", "flicker", "drift")
PLAYERS = 8  # on the page: the pairs farthest apart


def compare(
    reference: Path, other: Path, out: Path | None, fps: int, backbone: Path | None = None
) -> str:
    """Measure every pair; with ``out`` write ``compare.json`` and ``report.html``; returns the table.

    Raises:
        InvalidSettings: if something cannot be read, or a pair differs in its number of frames or size; of several
            pairs the others are measured and kept first.
    """
    if fps < 1:
        raise InvalidSettings(f"--fps must be at least 1, got {fps}")
    if out:
        check_writable(out / "report.html")
    found = pairs(reference, other)
    records, wrong = [], []
    for name, files in tqdm(found.items(), desc="compare", disable=None):
        try:
            records.append({"clip": name, **measure(name, *files, backbone)})
        except ValueError as error:
            wrong.append(first_line(error))
    if wrong:
        kept = keep(out, records) if out and records else None
        others = f"; {len(wrong) - 1} more pairs do not fit" if len(wrong) > 1 else ""
        raise InvalidSettings(f"{wrong[0]}{others}{f'; the rest is in {kept}' if kept else ''}")
    means = {name: mean_ci([r[name] for r in records]) for name in FIGURES}
    columns = column_titles(FIGURES, records)
    rows = {r["clip"]: {t: number(r[n]) for n, t in columns.items()} for r in records}
    if len(records) > 1:
        rows["mean"] = {t: format_figure(means[n], n) for n, t in columns.items()}
    if out:
        keep(out, records)
        write(out, found, records, rows, fps)
    return "\n".join([format_table(rows), *notes(records)])


def notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know besides the figures."""
    reason, equal = lpips_reason(records), sum(r["psnr"] == math.inf for r in records)
    found = [f"LPIPS was not measured: {reason}."] if reason else []
    if equal and len(records) > 1:
        found.append(f"{equal} of the pairs are equal bit for bit: the mean PSNR leaves them out.")
    return found


def pairs(reference: Path, other: Path) -> dict[str, tuple[Path, Path]]:
    """Files or folders to compare, by name."""
    sides = [clips_in(path) for path in (reference, other)]
    if all(side is None for side in sides):
        return {other.stem: (reference, other)}
    if any(side is None for side in sides):
        raise InvalidSettings(
            f"{reference} and {other} must both be clips, or both folders of clips"
        )
    first, second = (side or {} for side in sides)
    if first.keys() != second.keys():
        lonely = sorted(first.keys() ^ second.keys())
        raise InvalidSettings(
            f"clips must come in pairs of the same name: {lonely[0]!r} has no partner"
        )
    return {name: (first[name], second[name]) for name in sorted(first)}


def clips_in(path: Path) -> dict[str, Path] | None:
    """Clips in a folder by name; None for a clip itself: a file, or a folder of pictures.

    Raises:
        InvalidSettings: for a folder with nothing to compare.
    """
    if not path.is_dir():
        return None
    kinds = {p.suffix.lower() for p in path.iterdir()}
    if kinds.intersection(IMAGE_SUFFIXES):
        if kinds.intersection(VIDEO_SUFFIXES):
            raise InvalidSettings(
                f"{path} holds videos and pictures: put those to compare into a folder"
            )
        return None
    files = [p for p in path.iterdir() if p.is_dir() or p.suffix.lower() in VIDEO_SUFFIXES]
    found = {p.stem: p for p in files}
    if not found:
        raise InvalidSettings(
            f"no clips in {path}: give videos ({', '.join(VIDEO_SUFFIXES)}) or pictures"
        )
    if len(found) < len(files):
        raise InvalidSettings(f"{path} has two clips of one name: rename one")
    return found


def measure(name: str, reference: Path, other: Path, backbone: Path | None) -> dict[str, Any]:
    """The figures of one pair."""
    clips = [read_clip(path) for path in (reference, other)]
    if clips[0].shape != clips[1].shape:
        told = [" x ".join(map(str, clip.shape[:3])) for clip in clips]
        raise InvalidSettings(f"{name}: {told[0]} frames, rows and columns against {told[1]}")
    return similarity_metrics(clips[0], clips[1], backbone)


def keep(out: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write the figures of all pairs, and their means."""
    reason, path = lpips_reason(records), out / "compare.json"
    means = {name: mean_ci([r[name] for r in records]) for name in FIGURES}
    told = {"pairs": records, "mean": means, **({"lpips_reason": reason} if reason else {})}
    with atomic_write(path) as temporary:
        temporary.write_text(to_json(told, indent=2) + "\n")
    return path


def lpips_reason(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Why LPIPS was not measured, if it was not."""
    return next((r["lpips_reason"] for r in records if "lpips_reason" in r), None)


def number(value: Any) -> str:
    """A figure of one pair as text."""
    return "-" if value is None else f"{float(value):.4f}"


def write(
    out: Path,
    found: Mapping[str, tuple[Path, Path]],
    records: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, str]],
    fps: int,
) -> None:
    """The page of a comparison."""
    farthest = sorted(records, key=lambda r: r["psnr"])[:PLAYERS]
    page = Page(
        title="Clips compared",
        subtitle=f"{len(records)} pair{'s' * (len(records) != 1)}",
        row_name="clip",
        columns=list(column_titles(FIGURES, records).values()),
        table=[TableRow(name, list(row.values())) for name, row in rows.items()],
        heading="Frames against frames",
        explanation="Decoded frames of one clip against those of the other, as they came out of their files"
        + (" (the last row: mean with its 95 % interval)." if len(records) > 1 else "."),
        facts=[
            *((n, f"{a.name} against {b.name}") for n, (a, b) in found.items()),
            *((name, text) for name, text in versions().items()),
        ],
        notes=notes(records),
        clips_title="Pairs farthest apart",
        players=[
            player(out, number, r, found[r["clip"]], fps) for number, r in enumerate(farthest)
        ],
    )
    with atomic_write(out / "report.html") as temporary:
        temporary.write_text(page.html())


def player(
    out: Path, number: int, record: Mapping[str, Any], files: tuple[Path, Path], fps: int
) -> Player:
    """Both clips and their difference, as videos beside the page."""
    first, second = (read_clip(path) for path in files)
    panels: dict[str, Iterable[np.ndarray]] = {
        "reference": first,
        "other": second,
        "difference": difference(second, first),
    }
    shown_panels = []
    for label, frames in panels.items():
        path = out / "clips" / f"{number}-{label}.webm"
        write_webm(path, frames, fps)
        shown_panels.append(Panel(label, path))
    return Player(record["clip"], f"PSNR {record['psnr']:.2f} dB.", shown_panels, len(first), fps)
