"""Render a batch of requests to files: each request once, split among processes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.errors import InvalidSettings
from dit_accel.extensions import load_extension, require_extra
from dit_accel.generation.call_checks import check_call
from dit_accel.generation.distributed import Process
from dit_accel.generation.journal import Journal, find_record, is_rendered
from dit_accel.generation.loading import ModelCard, load_pipeline
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate_batch
from dit_accel.io.atomic import atomic_write, check_writable
from dit_accel.io.media import (
    draw_strip,
    join_side_by_side,
    read_metadata,
    require_encoder,
    write_clip,
)

if TYPE_CHECKING:
    from dit_accel.generation.render import Clip


@dataclass(frozen=True)
class Job:
    """A validated request, the card of its model, and the file that it is rendered to."""

    settings: RenderSettings
    card: ModelCard
    path: Path


@dataclass(frozen=True)
class BatchOptions:
    """How a batch is rendered.

    Attributes:
        compare: also render dense, and write a side-by-side clip and a strip of frames.
        lpips_backbone: weights of LPIPS's backbone; None takes those in torch's cache.
        report: JSON file for the records of all jobs.
        overwrite: render files again that were made with the same settings. A single job is always rendered.
        progress: show the progress of each clip.
    """

    compare: bool = False
    lpips_backbone: Path | None = None
    report: Path | None = None
    overwrite: bool = False
    progress: bool = False


@dataclass(frozen=True)
class Rendered:
    """A job that is done.

    Attributes:
        job: the request and its file.
        clip: the accelerated clip.
        dense: the dense clip, with ``compare``.
        quality: quality metrics of the clip against the dense one, with ``compare``.
    """

    job: Job
    clip: Clip
    dense: Clip | None = None
    quality: dict[str, Any] | None = None

    @property
    def files(self) -> list[Path]:
        """Return the files that were written."""
        path = self.job.path
        return [path] if self.dense is None else [path, comparison_path(path), strip_path(path)]


@dataclass(frozen=True)
class BatchSummary:
    """Number of this process's jobs that it rendered, and that had been rendered before."""

    rendered: int
    skipped: int


def plan_jobs(
    requests: Sequence[RenderSettings], out: Path | None, options: BatchOptions
) -> list[Job]:
    """Validate requests, their outputs and the packages they need; load nothing.

    Args:
        requests: settings of one model.
        out: file for one request, folder for several; None takes the working directory.
        options: how the batch is rendered.

    Raises:
        InvalidSettings: for a request or an output that does not work.
        RunFailed: for a missing package, naming the extra that brings it.
    """
    validated = validate_batch(requests)
    paths = output_paths(validated, out)
    for path in [*paths, *([options.report] if options.report else [])]:
        check_writable(path)
    if any(path.suffix == ".mp4" for path in paths):
        require_encoder()
    if options.compare:
        require_extra("a comparison", "torchmetrics", "lpips")
    for settings, card in validated:
        check_call(settings, card)
    return [Job(*request, path) for request, path in zip(validated, paths, strict=True)]


def describe_jobs(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """Yield the settings of each job, its output, and an estimate of the state that its method keeps."""
    from dit_accel.generation.memory import estimate_state

    estimated: RenderSettings | None = None
    for job in jobs:
        settings = replace(job.settings, prompt="")  # prompts have one length
        if settings != estimated:
            estimated, state = settings, estimate_state(job.settings, job.card)
        yield {**asdict(job.settings), "output": str(job.path), "method_state": state}


@dataclass(frozen=True)
class Batch:
    """Jobs of one model, and this process's part in them.

    Attributes:
        jobs: all jobs, in the same order in every process.
        options: how they are rendered.
        process: this process.
    """

    jobs: Sequence[Job]
    options: BatchOptions
    process: Process

    @property
    def journal(self) -> Journal | None:
        """Return the journal of this process, or None without a report."""
        report = self.options.report
        return None if report is None else Journal(report, self.process.rank)

    def run(self, on_rendered: Callable[[Rendered], None] | None = None) -> BatchSummary:
        """Render this process's jobs that are not done yet, and write the report.

        Args:
            on_rendered: called after each job, in the process that writes its files.

        Raises:
            RunFailed: if the model's files are damaged or missing.
            InvalidSettings: for load options that the pipeline does not support.
        """
        if self.options.compare:
            load_extension("comparison")
        share = self.process.share(self.jobs)
        records = self.journal.records() if self.journal else []
        render_all = self.options.overwrite or len(self.jobs) == 1
        pending = [job for job in share if render_all or not self.is_done(job, records)]
        if pending:
            self._render(pending, on_rendered)
        if self.journal and self.process.writes:
            self.journal.merge([(job.settings, job.path) for job in self.jobs])
        return BatchSummary(len(pending), len(share) - len(pending))

    def is_done(self, job: Job, records: Sequence[dict[str, Any]]) -> bool:
        """Return True if all files of a job and its record exist and were made with the same settings."""
        settings, path, compare = job.settings, job.path, self.options.compare
        if self.journal is not None:
            record = find_record(settings, path, records)
            if record is None or (compare and "quality" not in record):
                return False
        if not is_rendered(path, settings):
            return False
        return not compare or (
            strip_path(path).exists() and is_rendered(comparison_path(path), settings)
        )

    def _render(self, jobs: Sequence[Job], on_rendered: Callable[[Rendered], None] | None) -> None:
        """Load the model once and render jobs one after the other."""
        load_options = self.process.load_options(jobs[0].settings.load_options)
        start = time.perf_counter()
        pipe: Any = load_pipeline(jobs[0].card, load_options)
        load_seconds = time.perf_counter() - start
        writes = self.process.writes
        pipe.set_progress_bar_config(disable=not (self.options.progress and writes))
        for job in jobs:
            rendered = render_job(pipe, job, self.options, writes=writes)
            if self.journal and writes:
                self.journal.append(build_record(rendered, load_seconds))
            if on_rendered is not None and writes:
                on_rendered(rendered)


def render_job(pipe: Any, job: Job, options: BatchOptions, *, writes: bool = True) -> Rendered:
    """Render a job with a loaded pipeline and write its files.

    Args:
        pipe: the loaded pipeline.
        job: what to render.
        options: ``compare`` also renders dense and writes the side-by-side files.
        writes: False in processes that only compute a part of the clip.
    """
    from dit_accel.generation.render import render, versions

    settings = job.settings
    clip = render(pipe, settings)
    metadata = {**asdict(settings), "versions": versions(), "seconds": clip.seconds}
    if writes:
        remove_comparison(job.path)
        write_clip(job.path, clip.frames, settings.fps, metadata)
    if not options.compare:
        return Rendered(job, clip)
    dense = render(pipe, settings.as_dense())
    if not writes:
        return Rendered(job, clip)
    quality = load_extension("comparison").quality_metrics(
        dense.frames, clip.frames, settings.prompt, options.lpips_backbone
    )
    both = join_side_by_side(dense.frames, clip.frames)
    write_clip(comparison_path(job.path), both, settings.fps, metadata)
    with atomic_write(strip_path(job.path)) as temporary:
        draw_strip({"dense": dense.frames, settings.method: clip.frames}).save(temporary)
    return Rendered(job, clip, dense, quality)


def build_record(rendered: Rendered, load_seconds: float) -> dict[str, Any]:
    """Return the record of a job for the report."""
    from dit_accel.generation import render

    job, clip, dense = rendered.job, rendered.clip, rendered.dense
    record = render.build_record(job.settings, job.card, clip, load_seconds)
    record["output"] = str(job.path)
    if dense is not None:
        record["quality"] = rendered.quality
        record["speedup"] = load_extension("comparison").reported_speedup(dense, clip)
        record["dense_seconds"] = dense.seconds
    return record


def output_paths(
    validated: Sequence[tuple[RenderSettings, ModelCard]], out: Path | None
) -> list[Path]:
    """Return one file for each validated request.

    One request is rendered to ``out``, or into ``out`` if that is a folder. Several are rendered into the folder
    ``out``, to names made from their number and prompt.

    Raises:
        InvalidSettings: for an ending that does not fit what is made, or one file for several requests.
    """
    names = [f"{_slug(settings.prompt)}{_suffix(settings, card)}" for settings, card in validated]
    if len(validated) == 1:
        path = out or Path(names[0])
        if path.is_dir() or not path.suffix:
            path = path / names[0]
        _check_suffix(path, *validated[0])
        return [path]
    if out is not None and (out.is_file() or out.suffix in (".mp4", ".png")):
        raise InvalidSettings(
            f"output {out} is one file for {len(validated)} prompts: give a folder"
        )
    folder = out or Path()
    return [folder / f"{index:04d}-{name}" for index, name in enumerate(names)]


def _suffix(settings: RenderSettings, card: ModelCard) -> str:
    return ".png" if settings.frames == 1 or card.output == "image" else ".mp4"


def _check_suffix(path: Path, settings: RenderSettings, card: ModelCard) -> None:
    if path.suffix not in (".mp4", ".png"):
        raise InvalidSettings(f"output {path} has no .mp4 or .png ending: give one")
    if path.suffix == ".mp4" and card.output == "image":
        raise InvalidSettings(
            f"output {path} is a video, but {card.pipeline} makes images: use .png"
        )
    if path.suffix == ".png" and _suffix(settings, card) == ".mp4":
        raise InvalidSettings(
            f"output {path} is a single image, but the request is for a video: use .mp4, or --frames 1"
        )


def comparison_path(path: Path) -> Path:
    """Return the file of the side-by-side clip of an output."""
    return path.with_name(f"{path.stem}-compare{path.suffix}")


def strip_path(path: Path) -> Path:
    """Return the file of the strip of frames of an output, the last of its files to be written."""
    return path.with_name(f"{path.stem}-strip.png")


def remove_comparison(path: Path) -> None:
    """Remove the side-by-side files of an output that is about to be replaced, unless someone else made them."""
    try:
        read_metadata(comparison_path(path))
    except InvalidSettings:
        return
    strip_path(path).unlink(missing_ok=True)
    comparison_path(path).unlink()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "clip"
