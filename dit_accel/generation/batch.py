"""Render a batch of requests to files: each request once, split among processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.core.progress import Progress
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.extensions import load_extension, require_extra
from dit_accel.generation.distributed import Process
from dit_accel.generation.explain import explain
from dit_accel.generation.identity import find_ingredients, identify
from dit_accel.generation.journal import Journal, Request, find_record
from dit_accel.generation.loading import ModelCard, load_pipeline
from dit_accel.generation.outputs import (
    check_outputs,
    check_target,
    comparison_path,
    is_ours,
    is_rendered,
    names_file,
    output_paths,
    remove_comparison,
    strip_path,
)
from dit_accel.generation.placement import Lora
from dit_accel.generation.settings import RenderSettings, build_profile
from dit_accel.generation.tiny_world import warn_unreadable
from dit_accel.generation.validation import check_pipeline, validate_batch
from dit_accel.io.atomic import check_name
from dit_accel.io.media import format_metadata, join_side_by_side, write_clip, write_strip
from dit_accel.io.video import H264, require_encoder

if TYPE_CHECKING:
    from dit_accel.generation.render import Clip


@dataclass(frozen=True)
class Job:
    """A request that can be rendered.

    Attributes:
        settings: validated settings.
        card: the card of its model.
        path: the file that it is rendered to.
        files: digests of the files that it is made of, as `find_ingredients` returns them.
        named: True if the user gave ``path``, so that a file there is replaced.
    """

    settings: RenderSettings
    card: ModelCard
    path: Path
    files: Mapping[str, Any] = field(default_factory=dict)
    named: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """Return everything that decides what is rendered."""
        return identify(self.settings, self.files)

    @property
    def request(self) -> Request:
        """Return what the journal knows the job by."""
        return self.identity, self.path


@dataclass(frozen=True)
class BatchOptions:
    """How a batch is rendered.

    Attributes:
        compare: also render dense, and write a side-by-side clip and a strip of frames.
        explain: with ``compare``, also render without each lever, one at a time.
        lpips_backbone: weights of LPIPS's backbone; None takes those in torch's cache.
        report: JSON file for the records of all jobs.
        overwrite: render files again that were made with the same settings, and replace files that nobody named. A
            single job is always rendered.
        progress: what shows the progress.
    """

    compare: bool = False
    lpips_backbone: Path | None = None
    report: Path | None = None
    overwrite: bool = False
    progress: Progress = field(default_factory=Progress, compare=False)
    explain: bool = False


@dataclass(frozen=True)
class Rendered:
    """A job that is done.

    Attributes:
        job: the request and its file.
        clip: the accelerated clip.
        dense: the dense clip, with ``compare``.
        quality: quality metrics of the clip against the dense one, with ``compare``.
        explained: what each lever saved, with ``explain``.
    """

    job: Job
    clip: Clip
    dense: Clip | None = None
    quality: dict[str, Any] | None = None
    explained: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """Return the files that were written."""
        return job_files(self.job.path, compare=self.dense is not None)


@dataclass(frozen=True)
class BatchSummary:
    """Number of this process's jobs that it rendered, and that had been rendered before."""

    rendered: int
    skipped: int


def plan_jobs(
    requests: Sequence[RenderSettings],
    out: Path | None,
    options: BatchOptions,
    *,
    default: Path | None = None,
    inputs: Sequence[Path] = (),
) -> list[Job]:
    """Validate requests, their outputs and the packages they need; load nothing.

    Args:
        requests: settings that differ in their prompts only.
        out: file for one request, folder for several; None takes the working directory.
        options: how the batch is rendered.
        default: file for one request if ``out`` is None.
        inputs: files that no output may replace, besides those in the settings.

    Raises:
        InvalidSettings: for a request or an output that does not work.
        RunFailed: for a missing package or encoder, naming what brings it.
    """
    validated = validate_batch(requests)
    check_target(validated, out)
    jobs = make_jobs(validated, out or default, named=names_file(out))
    inputs = [*inputs, *input_files(requests[0])]
    check_outputs(planned_files(jobs, options), inputs)
    if any(job.path.suffix == ".mp4" for job in jobs):
        require_encoder(H264)
    if options.compare:
        require_extra("a comparison", "torchmetrics", "lpips")
    check_pipeline(*validated[0])  # requests differ in their prompts only
    for job in jobs:
        format_metadata(job.identity)
    return jobs


def make_jobs(
    validated: Sequence[tuple[RenderSettings, ModelCard]], out: Path | None, *, named: bool
) -> list[Job]:
    """Return jobs with their files; ``named`` says that the user gave the file's name."""
    files = find_ingredients(*validated[0])
    identities = [identify(settings, files) for settings, _ in validated]
    paths = output_paths(validated, identities, out)
    return [
        Job(*request, path, files, named) for request, path in zip(validated, paths, strict=True)
    ]


def input_files(settings: RenderSettings) -> list[Path]:
    """Return the files that a request names."""
    heads = settings.heads if isinstance(settings.heads, str) else None
    names = [settings.image, heads, *(Lora.parse(text).source for text in settings.loras)]
    return [Path(name) for name in names if name is not None and Path(name).is_file()]


def job_files(path: Path, *, compare: bool) -> list[Path]:
    """Return all files of a job."""
    return [path, comparison_path(path), strip_path(path)] if compare else [path]


def planned_files(jobs: Sequence[Job], options: BatchOptions) -> list[Path]:
    """Return all files that a batch writes.

    Raises:
        InvalidSettings: for a report that cannot be a file.
    """
    files = [file for job in jobs for file in job_files(job.path, compare=options.compare)]
    if options.report is None:
        return files
    check_name(options.report)
    return [*files, options.report, Journal(options.report, 0).path]


def describe_jobs(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """Yield the settings of each job, its output, why no call will be sparse, and the state that its method keeps."""
    from dit_accel.generation.forecast import predict_no_effect
    from dit_accel.generation.memory import estimate_state

    warn_unreadable([job.settings.prompt for job in jobs], jobs[0].settings.model)
    described: RenderSettings | None = None
    for job in jobs:
        settings = replace(job.settings, prompt="")  # prompts have one length
        if settings != described:
            described = settings
            forecast = {
                "no_effect": predict_no_effect(job.settings, job.card, build_profile(job.settings)),
                "method_state": estimate_state(job.settings, job.card),
            }
        yield {**asdict(job.settings), "output": str(job.path), **forecast}


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
            RunFailed: if the model's files are damaged or missing, or if a file cannot be written.
            InvalidSettings: for load options that the pipeline does not support, or if a file of other settings
                would be replaced.
        """
        if self.options.compare:
            load_extension("comparison")
        share = self.process.share(self.jobs)
        pending = self.find_pending()
        if pending:
            self._render(pending, on_rendered)
        if self.journal and self.process.writes:
            self._report(self.journal, share)
        return BatchSummary(len(pending), len(share) - len(pending))

    def find_pending(self) -> list[Job]:
        """Return this process's jobs that are not done yet.

        Raises:
            InvalidSettings: if a file of other settings would be replaced.
        """
        records = self.journal.records() if self.journal else []
        render_all = self.options.overwrite or len(self.jobs) == 1
        share = self.process.share(self.jobs)
        pending = [job for job in share if render_all or not self.is_done(job, records)]
        for job in pending:
            self._check_replaced(job)
        return pending

    def is_done(self, job: Job, records: Sequence[dict[str, Any]]) -> bool:
        """Return True if all files of a job and its record exist and were made with the same settings."""
        path, compare = job.path, self.options.compare
        if self.journal is not None:
            record = find_record(job.request, records)
            needed = {"quality": compare, "explained": self.options.explain}
            if record is None or any(needed[name] and name not in record for name in needed):
                return False
        # The video goes first: a comparison without it is made again.
        files = job_files(path, compare=compare)
        return all(is_rendered(file, job.identity) for file in files)

    def _check_replaced(self, job: Job) -> None:
        """Refuse to replace a file that the user did not name, unless the same render or another of ours made it."""
        if self.options.overwrite:
            return
        first, *derived = job_files(job.path, compare=self.options.compare)
        lost = [file for file in derived if file.exists() and not is_ours(file)]
        if not job.named and first.exists() and not is_rendered(first, job.identity):
            lost.append(first)
        if lost:
            raise InvalidSettings(
                f"{lost[0]} exists and is not from this render: choose another output with -o, or move the file"
            )

    def _report(self, journal: Journal, share: Sequence[Job]) -> None:
        """Write the report, which must hold every job of this process."""
        journal.merge([job.request for job in self.jobs])
        records = json.loads(journal.report.read_text()) if journal.report.is_file() else []
        records = records if isinstance(records, list) else [records]
        missing = [job for job in share if find_record(job.request, records) is None]
        if missing:
            raise RunFailed(f"report {journal.report} lacks {len(missing)} of {len(share)} clips")

    def _render(self, jobs: Sequence[Job], on_rendered: Callable[[Rendered], None] | None) -> None:
        """Load the model once and render jobs one after the other."""
        load_options = self.process.load_options(jobs[0].settings.load_options)
        writes = self.process.writes
        warn_unreadable([job.settings.prompt for job in jobs], jobs[0].settings.model)
        options = self.options if writes else replace(self.options, progress=Progress())
        start = time.perf_counter()
        with options.progress.part(f"loading {jobs[0].settings.model}"):
            pipe: Any = load_pipeline(jobs[0].card, load_options)
        load_seconds = time.perf_counter() - start
        pipe.set_progress_bar_config(disable=True)
        for number, job in enumerate(jobs, 1):
            name = f"clip {number} of {len(jobs)}" if len(jobs) > 1 else ""
            rendered = render_job(pipe, job, options, writes=writes, name=name)
            if self.journal and writes:
                self.journal.append(build_record(rendered, load_seconds))
            if on_rendered is not None and writes:
                on_rendered(rendered)


def render_job(
    pipe: Any, job: Job, options: BatchOptions, *, writes: bool = True, name: str = ""
) -> Rendered:
    """Render a job with a loaded pipeline and write its files.

    Args:
        pipe: the loaded pipeline.
        job: what to render.
        options: ``compare`` also renders dense and writes the side-by-side files.
        writes: False in processes that only compute a part of the clip.
        name: name of the clip in the progress, if there are several.
    """
    settings, progress = job.settings, options.progress
    clip = render_shown(pipe, settings, options, name)
    metadata = {**job.identity, "seconds": clip.seconds}
    if writes:
        with progress.part(f"writing {job.path}"):
            remove_comparison(job.path)
            write_clip(job.path, clip.frames, settings.fps, metadata)
    if not options.compare:
        return Rendered(job, clip)
    dense = render_shown(pipe, settings.as_dense(), options, name)
    if not writes:
        return Rendered(job, clip)
    with progress.part("measuring the difference"):
        quality = load_extension("comparison").quality_metrics(
            dense.frames, clip.frames, settings.prompt, options.lpips_backbone
        )
    with progress.part(f"writing {comparison_path(job.path)}"):
        both = join_side_by_side(dense.frames, clip.frames)
        write_clip(comparison_path(job.path), both, settings.fps, metadata)
        write_strip(
            strip_path(job.path), {"dense": dense.frames, settings.label: clip.frames}, metadata
        )
    if not options.explain:
        return Rendered(job, clip, dense, quality)
    explained = explain(
        settings,
        clip,
        dense,
        lambda without, lever: render_shown(pipe, without, options, f"without {lever}"),
    )
    return Rendered(job, clip, dense, quality, explained)


def render_shown(pipe: Any, settings: RenderSettings, options: BatchOptions, name: str) -> Clip:
    """Render a clip and show its progress; with ``compare`` a label tells the two renders apart."""
    from dit_accel.generation.call_progress import show_call
    from dit_accel.generation.render import check_finite, render

    names = [name, settings.label if options.compare else ""]
    with show_call(pipe, options.progress, clip=", ".join(filter(None, names))):
        return check_finite(render(pipe, settings), settings)


def build_record(rendered: Rendered, load_seconds: float) -> dict[str, Any]:
    """Return the record of a job for the report."""
    from dit_accel.generation import render

    job, clip, dense = rendered.job, rendered.clip, rendered.dense
    record = render.build_record(job.settings, job.card, clip, load_seconds)
    record |= {**job.identity, "output": str(job.path)}
    if dense is not None:
        record["quality"] = rendered.quality
        record["speedup"] = load_extension("comparison").reported_speedup(dense, clip)
        record["dense_seconds"] = dense.seconds
    if rendered.explained:
        record["explained"] = rendered.explained
    return record
