"""Compare clips from any source, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.core.progress import Progress
from dit_accel.errors import InvalidSettings, first_line
from dit_accel.io.atomic import atomic_write, check_writable
from dit_accel.io.jsonl import to_json
from dit_accel.io.tables import format_table
from dit_accel.io.video import VP9, require_encoder
from dit_accel_eval.clip_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, list_files, read_clip
from dit_accel_eval.frames import difference, write_webm

if TYPE_CHECKING:
    import numpy as np

    from dit_accel_eval.page import Player

FIGURES = ("psnr", "ssim", "lpips", "st_lpips", "cvvdp", "flicker", "drift")
# Metrics that need weights, or frames of some size.
CONDITIONAL = {
    **{"SSIM": "ssim_reason", "LPIPS": "lpips_reason"},
    **{"ST-LPIPS": "st_lpips_reason", "ColorVideoVDP": "cvvdp_reason"},
}
# The page shows the least similar pairs.
PLAYERS = 8
# Seconds after which progress is shown.
PATIENCE = 2.0

Pairs = Mapping[str, tuple[Path, Path]]
"""Reference and other clip by the name of the pair."""
Record = Mapping[str, Any]
"""Figures of one pair."""


@dataclass(frozen=True)
class Comparison:
    """Figures of pairs of clips.

    Attributes:
        pairs: All pairs.
        records: Figures of those that fit.
        errors: What is wrong with the others.
    """

    pairs: Pairs
    records: Sequence[Record]
    errors: Sequence[str]

    def table(self) -> str:
        """Return the figures as text."""
        return "\n".join([format_table(make_rows(self.records)), *notes(self.records)])

    def check(self, out: Path | None) -> None:
        """Raise InvalidSettings if a pair could not be compared."""
        if not self.errors:
            return
        others = f"; {len(self.errors) - 1} more pairs do not fit" if self.errors[1:] else ""
        rest = f"; the rest is in {out / 'compare.json'}" if out and self.records else ""
        raise InvalidSettings(f"{self.errors[0]}{others}{rest}")


def compare(
    reference: Path,
    other: Path,
    out: Path | None,
    backbone: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure every pair of clips, and write ``compare.json``.

    Args:
        reference, other: two clips, or two folders with clips of the same names.
        out: folder for ``compare.json``; None writes nothing.
        backbone: weights of LPIPS's network, as in `dit_accel_eval.metrics.lpips.lpips`.
        progress: what shows the progress.

    Raises:
        InvalidSettings: for clips that do not come in pairs.
    """
    if out:
        check_writable(out / "report.html")
        require_encoder(VP9)
    pairs = match_clips(reference, other)
    records, errors = [], []
    progress = progress or Progress()
    items = list(pairs.items())
    for name, files in progress.iterate(items, "comparing", unit="pair", patience=PATIENCE):
        try:
            records.append({"clip": name, **measure(name, *files, backbone)})
        except (ValueError, RuntimeError) as error:
            errors.append(first_line(error))
    if out and records:
        write_json(out, records)
    return Comparison(pairs, records, errors)


def make_rows(records: Sequence[Record]) -> dict[str, dict[str, str]]:
    """Return the table: a row per pair and, for several pairs, the mean with its 95 % interval."""
    from dit_accel_eval.figures import column_titles, format_figure

    columns = column_titles(FIGURES, records)
    rows = {
        record["clip"]: {title: format_single(record[name]) for name, title in columns.items()}
        for record in records
    }
    if len(records) > 1:
        means = mean_figures(records)
        rows[f"mean of {len(records)}"] = {
            title: format_figure(means[name], name) for name, title in columns.items()
        }
    return rows


def mean_figures(records: Sequence[Record]) -> dict[str, Any]:
    """Return the mean of each figure with its interval."""
    from dit_accel_eval.statistics import mean_ci

    return {name: mean_ci([record[name] for record in records]) for name in FIGURES}


def notes(records: Sequence[Record]) -> list[str]:
    """Return remarks on the figures."""
    remarks = []
    for metric, field in CONDITIONAL.items():
        lacking = [record for record in records if field in record]
        if lacking:
            names = ", ".join(record["clip"] for record in lacking)
            some = f" for {names}" if len(lacking) < len(records) else ""
            remarks.append(f"{metric} was not measured{some}: {lacking[0][field]}.")
    equal = sum(record["psnr"] == math.inf for record in records)
    if equal and len(records) > 1:
        remarks.append(
            f"{equal} of the pairs are equal bit for bit: the mean PSNR leaves them out."
        )
    return remarks


def match_clips(reference: Path, other: Path) -> Pairs:
    """Return the pairs of two clips or two folders.

    Raises:
        InvalidSettings: for a clip and a folder, or folders with different names.
    """
    sides = [clips_in(path) for path in (reference, other)]
    if all(side is None for side in sides):
        return {other.stem: (reference, other)}
    if any(side is None for side in sides):
        raise InvalidSettings(
            f"{reference} and {other} must both be clips, or both folders of clips"
        )
    first, second = (side or {} for side in sides)
    if first.keys() != second.keys():
        single = min(first.keys() ^ second.keys())
        raise InvalidSettings(
            f"clips must come in pairs of the same name: {single!r} has no partner"
        )
    return {name: (first[name], second[name]) for name in sorted(first)}


def clips_in(path: Path) -> dict[str, Path] | None:
    """Return the clips in a folder by name, or None if the path is a clip: a file, or a folder of images.

    Hidden files, and folders without images, are no clips.

    Raises:
        InvalidSettings: for a folder without clips, with clips and images, or with two clips of the same name.
    """
    if not path.is_dir():
        return None
    videos = list_files(path, VIDEO_SUFFIXES)
    if list_files(path, IMAGE_SUFFIXES):
        if videos:
            raise InvalidSettings(
                f"{path} holds videos and images: move those to compare into a folder of their own"
            )
        return None
    folders = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    named = [(p.stem, p) for p in videos]
    named += [(p.name, p) for p in folders if list_files(p, IMAGE_SUFFIXES)]
    clips = dict(named)
    if not clips:
        raise InvalidSettings(
            f"no clips in {path}: give videos ({', '.join(VIDEO_SUFFIXES)}) or images"
        )
    if len(clips) < len(named):
        raise InvalidSettings(f"{path} has two clips of the same name: rename one")
    return clips


def measure(name: str, reference: Path, other: Path, backbone: Path | None) -> dict[str, Any]:
    """Return the figures of one pair.

    Raises:
        InvalidSettings: for a clip that cannot be read, or clips of different sizes.
    """
    from dit_accel_eval.quality_metrics import similarity_metrics

    first, second = (read_clip(path) for path in (reference, other))
    if first.shape != second.shape:
        sizes = [" x ".join(map(str, clip.shape[:3])) for clip in (first, second)]
        raise InvalidSettings(f"{name}: {sizes[0]} frames, rows and columns against {sizes[1]}")
    return similarity_metrics(first, second, backbone)


def write_json(out: Path, records: Sequence[Record]) -> None:
    """Write the figures of all pairs and their means to ``compare.json``."""
    reason = next((r["lpips_reason"] for r in records if "lpips_reason" in r), None)
    record = {
        "pairs": records,
        "mean": mean_figures(records),
        **({"lpips_reason": reason} if reason else {}),
    }
    with atomic_write(out / "compare.json") as temporary:
        temporary.write_text(to_json(record, indent=2) + "\n")


def format_single(value: Any) -> str:
    """Return a figure of one pair as text; None becomes a dash."""
    return "-" if value is None else f"{float(value):.4f}"


def write_page(comparison: Comparison, out: Path, fps: int) -> None:
    """Write ``report.html``, whose videos have ``fps`` frames per second.

    Raises:
        RunFailed: if that fails. The figures are in ``compare.json``.
    """
    from dit_accel.generation.identity import versions
    from dit_accel_eval.figures import column_titles
    from dit_accel_eval.page import Page, TableRow
    from dit_accel_eval.plots import naming_results

    pairs, records = comparison.pairs, comparison.records
    least_similar = sorted(records, key=lambda record: float(record["psnr"]))[:PLAYERS]
    several = len(records) > 1
    with naming_results(f"the figures are in {out / 'compare.json'}"):
        page = Page(
            title="Clips compared",
            subtitle=f"{len(records)} pair{'s' * several}",
            row_name="clip",
            columns=list(column_titles(FIGURES, records).values()),
            table=[TableRow(name, list(row.values())) for name, row in make_rows(records).items()],
            heading="Frames against frames",
            explanation="The decoded frames of one clip are compared with those of the other."
            + " The last row is the mean with its 95 % interval." * several,
            facts=[
                *((name, f"{a.name} against {b.name}") for name, (a, b) in pairs.items()),
                *versions().items(),
            ],
            notes=[*comparison.errors, *notes(records)],
            clips_title="Least similar pairs",
            players=[
                make_player(out, number, record, pairs[record["clip"]], fps)
                for number, record in enumerate(least_similar)
            ],
        )
        page.write(out / "report.html")


def make_player(
    out: Path, number: int, record: Record, files: tuple[Path, Path], fps: int
) -> Player:
    """Write both clips and their difference as videos, and return a player for them."""
    from dit_accel_eval.page import Panel, Player

    first, second = (read_clip(path) for path in files)
    videos: dict[str, Iterable[np.ndarray]] = {
        "reference": first,
        "other": second,
        "difference": difference(second, first),
    }
    panels = []
    for label, frames in videos.items():
        path = out / "clips" / f"{number}-{label}.webm"
        write_webm(path, frames, fps)
        panels.append(Panel(label, path))
    return Player(record["clip"], f"PSNR {record['psnr']:.2f} dB.", panels, len(first), fps)
