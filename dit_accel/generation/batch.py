"""Requests become files: checked, shared among processes, and not done twice."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dit_accel.errors import InvalidSettings
from dit_accel.extensions import load_extension
from dit_accel.io.atomic import atomic_write, check_writable
from dit_accel.io.jsonl import append_record, read_records, to_json

if TYPE_CHECKING:
    from dit_accel.generation.distributed import Process


def run(
    requests: list[Any],
    out: Path | None,
    *,
    compare: bool = False,
    backbone: Path | None = None,
    report: Path | None = None,
    overwrite: bool = True,
    dry_run: bool = False,
    quiet: bool = False,
) -> None:
    """Check all requests and outputs, load the model once, render one after the other: of several what is not
    there yet, and of those this process's share.

    Raises:
        InvalidSettings: for a request, an output or a model that does not work, in one line.
    """
    from dit_accel.generation.distributed import this_process
    from dit_accel.generation.validation import check

    checked = [check(settings) for settings in requests]
    process = this_process(requests[0].ulysses)
    paths = output_paths(checked, out)
    for path in [*paths, *([report] if report else [])]:
        check_writable(path)
    if dry_run:
        from dit_accel.generation.memory import state_of_render

        for path, (settings, card) in zip(paths, checked, strict=True):
            told = {"output": str(path), "method_state": state_of_render(settings, card)}
            click.echo(json.dumps({**asdict(settings), **told}, indent=2))
        return
    batch = Batch(compare, backbone, report, overwrite or len(paths) == 1, quiet, process)
    batch.run(checked, paths)


def output_paths(checked: list[Any], out: Path | None) -> list[Path]:
    """One file name per checked request: ``out`` itself for one, if it is no folder; names made from the prompts
    inside ``out`` for several.

    Raises:
        InvalidSettings: for an ending that does not fit what is made.
    """
    settings = [request for request, _ in checked]
    suffix = [
        ".png" if request.frames == 1 or card.output == "image" else ".mp4"
        for request, card in checked
    ]
    if len(settings) == 1:
        path = out or Path(f"{_slug(settings[0].prompt)}{suffix[0]}")
        if path.is_dir() or not path.suffix:
            path = path / f"{_slug(settings[0].prompt)}{suffix[0]}"
        if path.suffix not in (".mp4", ".png"):
            raise InvalidSettings(f"output {path} has no .mp4 or .png ending: give one")
        if path.suffix == ".mp4" and checked[0][1].output == "image":
            raise InvalidSettings(
                f"output {path} is a video, but {checked[0][1].pipeline} makes pictures: use .png"
            )
        if path.suffix == ".png" and suffix[0] == ".mp4":
            raise InvalidSettings(
                f"output {path} is a single picture, but a video was asked for: use .mp4, or --frames 1"
            )
        return [path]
    if out is not None and (out.is_file() or out.suffix in (".mp4", ".png")):
        raise InvalidSettings(
            f"output {out} is one file for {len(settings)} prompts: give a folder"
        )
    folder = out or Path()
    return [
        folder / f"{i:04d}-{_slug(s.prompt)}{e}"
        for i, (s, e) in enumerate(zip(settings, suffix, strict=True))
    ]


@dataclass(frozen=True)
class Batch:
    """How requests are rendered.

    Attributes:
        compare: also dense, with the side-by-side files.
        backbone: of LPIPS.
        report: JSON file; each process keeps its records beside it, and the last one to end has them all.
        overwrite: render what is there already.
        quiet: no progress, no table.
        process: which share of the requests is this process's.
    """

    compare: bool
    backbone: Path | None
    report: Path | None
    overwrite: bool
    quiet: bool
    process: Process

    def run(self, checked: Sequence[Any], paths: Sequence[Path]) -> None:
        """Load the model once and render request after request."""
        from dit_accel.generation.loading import load_pipeline
        from dit_accel.generation.render import report_of

        records = self._records()
        own = self.process.share(list(zip(checked, paths, strict=True)))
        todo = [
            (settings, path)
            for (settings, _), path in own
            if self.overwrite or not self._is_done(settings, path, records)
        ]
        if todo:
            first, card = checked[0]
            start = time.perf_counter()
            pipe = load_pipeline(card, self.process.load_options(first.load_options))
            seconds = time.perf_counter() - start
            hidden = self.quiet or not self.process.writes or not sys.stderr.isatty()
            pipe.set_progress_bar_config(disable=hidden)
            for settings, path in todo:
                clip, extra = render_one(pipe, settings, path, self)
                record = report_of(settings, card, clip, seconds)
                if self.report and self.process.writes:
                    self.report.parent.mkdir(parents=True, exist_ok=True)
                    append_record(self._journal(), {**record, "output": str(path), **extra})
        if not self.quiet and len(paths) > 1 and self.process.writes:
            click.echo(f"{len(todo)} rendered, {len(own) - len(todo)} were there")
        self._merge([(settings, path) for (settings, _), path in zip(checked, paths, strict=True)])

    def _is_done(self, settings: Any, path: Path, records: Sequence[dict[str, Any]]) -> bool:
        """Whether all files of a request are there, and its record, made with the very same settings."""
        if self.report is not None:
            record = record_of(settings, path, records)
            if record is None or (self.compare and "quality" not in record):
                return False
        if not holds(path, settings):
            return False
        return not self.compare or (
            sheet_of(path).exists() and holds(comparison_of(path), settings)
        )

    def _journal(self) -> Path:
        assert self.report is not None
        return self.report.with_suffix(f".{self.process.rank}.jsonl")

    def _records(self) -> list[dict[str, Any]]:
        """Of all processes that write to this report."""
        if self.report is None:
            return []
        found = self.report.parent.glob(f"{self.report.stem}.*.jsonl")
        journals = sorted(found, key=lambda path: path.stat().st_mtime_ns)  # the latest last
        return [record for journal in journals for record in read_records(journal)]

    def _merge(self, requests: Sequence[tuple[Any, Path]]) -> None:
        """The report, of what all processes have rendered so far, in the order of the requests; again while
        others add to it, because the last one to write must have read what all have added.
        """
        if self.report is None or not self.process.writes:
            return
        written: list[dict[str, Any]] = []  # none: another process has them
        while (there := self._recorded(requests)) != written and there:
            with atomic_write(self.report) as temporary:
                told = there if len(requests) > 1 else there[0]
                temporary.write_text(to_json(told, indent=2) + "\n")
            written = there
        if len(requests) == 1 and written:
            self._journal().unlink(missing_ok=True)

    def _recorded(self, requests: Sequence[tuple[Any, Path]]) -> list[dict[str, Any]]:
        """The latest record of each request that has one, by any process."""
        records = self._records()
        found = [record_of(settings, path, records) for settings, path in requests]
        return [record for record in found if record is not None]


def record_of(
    settings: Any, path: Path, records: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """The latest record of a request, made with the very same settings and versions."""
    own = (r for r in reversed(records) if r["output"] == str(path) and is_made_so(r, settings))
    return next(own, None)


def is_made_so(kept: dict[str, Any], settings: Any) -> bool:
    """Whether what was kept of a render names the very same settings and versions."""
    from dit_accel.generation.render import versions

    asked = json.loads(to_json({**asdict(settings), "versions": versions()}))
    return all(kept.get(name) == value for name, value in asked.items())


def holds(path: Path, settings: Any) -> bool:
    """Whether a file is there that was made with the very same settings and versions."""
    from dit_accel.io.media import read_metadata

    try:
        return is_made_so(read_metadata(path), settings)
    except InvalidSettings:
        return False


def comparison_of(path: Path) -> Path:
    """The side-by-side clip beside an output."""
    return path.with_name(f"{path.stem}-compare{path.suffix}")


def sheet_of(path: Path) -> Path:
    """The strip of frames beside an output, the last file that is written of it."""
    return path.with_name(f"{path.stem}-strip.png")


def remove_comparison(path: Path) -> None:
    """Remove the side-by-side files of an output that is about to be replaced, where they are ours."""
    from dit_accel.io.media import read_metadata

    try:
        read_metadata(comparison_of(path))
    except InvalidSettings:
        return
    sheet_of(path).unlink(missing_ok=True)
    comparison_of(path).unlink()


def render_one(pipe: Any, settings: Any, path: Path, batch: Batch) -> tuple[Any, dict[str, Any]]:
    """Render one request to a file; with ``compare`` also dense, and the side-by-side files."""
    from dit_accel.generation.render import render, versions
    from dit_accel.io.media import side_by_side, strip, write_clip

    clip = render(pipe, settings)
    metadata = {**asdict(settings), "versions": versions(), "seconds": clip.seconds}
    if batch.process.writes:
        remove_comparison(path)
        write_clip(path, clip.frames, settings.fps, metadata)
    if not batch.compare:
        if not batch.quiet and batch.process.writes:
            click.echo(f"{path}\n{clip.attention}")
        return clip, {}
    comparison = load_extension("comparison")
    dense = render(pipe, settings.as_dense())
    if not batch.process.writes:
        return clip, {}
    figures = comparison.quality_metrics(dense.frames, clip.frames, settings.prompt, batch.backbone)
    both = comparison_of(path)
    write_clip(both, side_by_side(dense.frames, clip.frames), settings.fps, metadata)
    sheet = sheet_of(path)
    with atomic_write(sheet) as temporary:
        strip({"dense": dense.frames, settings.method: clip.frames}).save(temporary)
    if not batch.quiet:
        click.echo(
            f"{path}\n{both}\n{sheet}\n{comparison.summary(dense, clip, figures, settings.method)}"
        )
    return clip, {
        "quality": figures,
        "speedup": comparison.speedup(dense, clip),
        "dense_seconds": dense.seconds,
    }


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "clip"
