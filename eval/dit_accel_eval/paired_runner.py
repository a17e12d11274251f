"""Paired rendering: each clip once with dense attention and then with each setting, on the same noise.

Every render becomes one line of a JSONL file. A run that was killed goes on where it stopped. Processes that a launcher
started together share the clips, and each of them appends to a file of its own.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit_accel.core.progress import Progress
from dit_accel.errors import RunFailed, first_line
from dit_accel.generation.call_progress import show_call
from dit_accel.generation.distributed import Process, this_process
from dit_accel.generation.loading import ModelCard, load_pipeline
from dit_accel.generation.placement import LoadOptions
from dit_accel.generation.render import Clip, check_finite, render
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.io.jsonl import append_record, log_path, read_logs, to_json
from dit_accel.runtime.cost_model import SlowdownWarning
from dit_accel_eval.dense import NATIVE, DenseBackend
from dit_accel_eval.digest import digest
from dit_accel_eval.frames import load_frames, save_frames
from dit_accel_eval.quality_metrics import quality_metrics
from dit_accel_eval.settings import WARM_UP_STEPS, Setting

# A dense time is used this long, because the speed of a machine changes during a day.
RETIME_SECONDS = 600.0
# Parts of a clip are shown after this many seconds, because there are many clips.
PATIENCE = 5.0
# Beginning of the reason of a clip that may succeed in another run.
OUT_OF_MEMORY = "out of memory"
NO_FRAMES = np.empty((0, 0, 0, 3), np.float32)

Record = dict[str, Any]


@dataclass(frozen=True)
class RecordLog:
    """Records of all processes, found by the fields that identify them.

    Attributes:
        path: File of the first process. The others append to ``NAME.1.jsonl``, ... beside it.
        key_fields: Names of the fields that identify a record.
    """

    path: Path
    key_fields: tuple[str, ...]

    def key(self, record: Mapping[str, Any]) -> str:
        """Return the identifying fields of a record as text."""
        identity = to_json({name: record.get(name) for name in self.key_fields})
        return json.dumps(json.loads(identity), sort_keys=True)

    def read(self) -> dict[str, Record]:
        """Return the records of all processes by key; one that failed only if no other has its key."""
        records = sorted(read_logs(self.path), key=lambda record: "failed" not in record)
        return {self.key(record): record for record in records}

    def append(self, rank: int, record: Mapping[str, Any]) -> None:
        """Append a record to the file of a process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_record(log_path(self.path, rank), record)


@dataclass
class PairedRunner:
    """Renders clips with dense attention and with settings.

    Attributes:
        load: Function that returns the pipeline. It is called once, before the first render.
        fastest: Dense attention that speed-ups are ratios to.
        folder: Folder that keeps dense frames. None renders them again whenever a clip is needed again.
        identity: What decides a dense clip besides its request, such as the weights.
        process: Process whose share of the clips is rendered.
        progress: What shows the progress.
        retime_seconds: How long a dense time is used.
    """

    load: Callable[[], Any]
    fastest: DenseBackend = field(default_factory=DenseBackend)
    folder: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    process: Process = field(default_factory=this_process)
    progress: Progress = field(default_factory=Progress)
    retime_seconds: float = RETIME_SECONDS
    _warm: set[str] = field(default_factory=set, init=False)
    # When each dense clip was timed, and the clip without its frames.
    _timed: dict[str, tuple[float, Clip]] = field(default_factory=dict, init=False)

    @cached_property
    def pipe(self) -> Any:
        """The loaded pipeline."""
        return self.load()

    def run(
        self,
        work: Sequence[tuple[RenderSettings, Sequence[Setting]]],
        log: RecordLog,
        *,
        describe: Callable[[Setting, RenderSettings], Record],
        measure: Callable[[Setting, RenderSettings, Clip, Clip], Record],
        is_complete: Callable[[Record], bool] = lambda record: "failed" not in record,
    ) -> list[Record] | None:
        """Render what a log does not hold yet, of the clips that are this process's share.

        Args:
            work: A dense request per clip, each with the settings to render it with.
            log: Log to resume from and to append to.
            describe: Function that returns the first fields of a record, with those that identify it.
            measure: Function of the dense and the other render that returns the further fields. A setting that runs out
                of memory has the field ``failed`` instead.
            is_complete: Function that returns False for a record to make again. The default makes failed ones again.

        Returns:
            The records in the order of ``work``, or None while other processes have clips left.
        """
        done = {key for key, record in log.read().items() if is_complete(record)}
        todo = []
        for case, settings in self.process.share(work):
            missing = [s for s in settings if log.key(describe(s, case)) not in done]
            if missing:
                todo.append((case, missing))
        renders = sum(1 + len(missing) for _, missing in todo)
        with self.progress.part("rendering", renders, unit="clip", patience=PATIENCE) as part:
            for case, missing in todo:
                dense, timed_at = self.dense(case), time.monotonic()
                part.update()
                for setting in missing:
                    if time.monotonic() - timed_at >= self.retime_seconds:
                        dense, timed_at = self.dense(case), time.monotonic()
                    record = {**describe(setting, case), "frames": len(dense.frames)}
                    try:
                        clip = self.render(setting, case)
                    except torch.OutOfMemoryError as error:
                        record["failed"] = f"{OUT_OF_MEMORY}: {first_line(error)}"
                    else:
                        record |= measure(setting, case, dense, clip)
                    log.append(self.process.rank, record)
                    part.update()
        return collect(work, log, describe)

    def dense(self, case: RenderSettings) -> Clip:
        """Return the dense clip: frames of the pipeline's own attention, and times of the fastest one.

        The times are measured in this process, because a speed-up is a ratio within one process.
        """
        settings, _ = validate(case)
        name = self.dense_name(case)
        path = self.folder / f"{name}.safetensors" if self.folder else None
        frames = load_frames(path) if path else None
        measured_at, timed = self._timed.get(name, (0.0, None))
        if frames is not None and timed and time.monotonic() - measured_at < self.retime_seconds:
            return replace(timed, frames=frames)
        short = replace(settings, steps=WARM_UP_STEPS)
        with show_call(self.pipe, self.progress, clip="dense", patience=PATIENCE):
            self._warm_up("dense reference", lambda: self.fastest.render(self.pipe, short))
            timed = self.fastest.render(self.pipe, settings)
            self._timed[name] = time.monotonic(), replace(timed, frames=NO_FRAMES)
            if frames is None:
                is_native = self.fastest.name == NATIVE
                native = timed if is_native else render(self.pipe, settings.as_dense())
                frames = check_finite(native, case).frames
                if path:
                    save_frames(path, frames)
        return replace(timed, frames=frames)

    def render(self, setting: Setting, case: RenderSettings, name: str = "") -> Clip:
        """Render a clip with a setting. The first render of a label is preceded by a warm-up.

        Args:
            setting: How the clip is rendered.
            case: Request of the clip.
            name: Name of the setting in the progress; empty takes its label.
        """
        with (
            warnings.catch_warnings(),
            show_call(self.pipe, self.progress, clip=name or setting.label, patience=PATIENCE),
        ):
            # The run measures what this warning predicts.
            warnings.simplefilter("ignore", SlowdownWarning)
            self._warm_up(setting.label, lambda: setting.warm_up(self.pipe, case))
            return setting.render(self.pipe, case)

    def dense_name(self, case: RenderSettings) -> str:
        """Return the file name of a dense clip, without its suffix."""
        return digest({**asdict(validate(case)[0]), **self.identity})

    def forget_times(self) -> None:
        """Time dense attention anew for every clip."""
        self._timed.clear()

    def _warm_up(self, label: str, run: Callable[[], Any]) -> None:
        if label not in self._warm:
            run()
            self._warm.add(label)


def collect(
    work: Sequence[tuple[RenderSettings, Sequence[Setting]]],
    log: RecordLog,
    describe: Callable[[Setting, RenderSettings], Record],
) -> list[Record] | None:
    """Return the records of all clips in the order of ``work``, or None if some are missing."""
    records = log.read()
    keys = [log.key(describe(s, case)) for case, settings in work for s in settings]
    return [records[key] for key in keys] if records.keys() >= set(keys) else None


def load_silently(
    card: ModelCard, load_options: LoadOptions, progress: Progress | None = None
) -> Any:
    """Load a pipeline and turn off its own progress bars."""
    with (progress or Progress()).part(f"loading {Path(card.source).name}"):
        pipe = load_pipeline(card, load_options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure_quality(dense: Clip, clip: Clip, prompt: str, backbone: Path | None = None) -> Record:
    """Return `quality_metrics`, or ``failed`` with the reason if frames are not finite."""
    try:
        return quality_metrics(dense.frames, clip.frames, prompt, backbone)
    except ValueError as error:
        return {"failed": first_line(error)}


def check_measured(records: Sequence[Mapping[str, Any]]) -> None:
    """Raise RunFailed if a clip could not be measured."""
    reasons = [record["failed"] for record in records if "failed" in record]
    if reasons:
        raise RunFailed(f"{len(reasons)} clips could not be measured: {reasons[0]}")
