"""Turn the renders of an evaluation into records and videos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dit_accel.generation.render import Clip
from dit_accel.generation.settings import RenderSettings
from dit_accel_eval.digest import digest
from dit_accel_eval.frames import difference, holds_frames, load_frames, write_webm
from dit_accel_eval.paired_runner import OUT_OF_MEMORY, PairedRunner, Record, measure_quality
from dit_accel_eval.quality_metrics import no_effect, reported_speedup
from dit_accel_eval.settings import Setting


@dataclass(frozen=True)
class Recorder:
    """Turns the renders of an evaluation into records, and into videos in its folder ``out``."""

    out: Path
    runner: PairedRunner
    backbone: Path | None

    def key(self, setting: Setting, case: RenderSettings) -> str:
        """Return everything that decides a record as JSON."""
        return json.dumps({**setting.identity(case), **self.runner.identity}, sort_keys=True)

    def distinct(self, settings: Sequence[Setting], case: RenderSettings) -> list[Setting]:
        """Return the settings without those that render the same as an earlier one."""
        by_key: dict[str, Setting] = {}
        for setting in settings:
            by_key.setdefault(self.key(setting, case), setting)
        return list(by_key.values())

    def describe(self, setting: Setting, case: RenderSettings) -> Record:
        """Return the first fields of a record."""
        return {
            "key": self.key(setting, case),
            "setting": setting.label,
            "prompt": case.prompt,
            "seed": case.seed,
        }

    def measure(self, setting: Setting, case: RenderSettings, dense: Clip, clip: Clip) -> Record:
        """Return the figures of a record, and write its videos if its frames are finite."""
        figures = measure_quality(dense, clip, case.prompt, self.backbone)
        if "failed" not in figures:
            figures |= self._write_videos(setting, case, dense.frames, clip.frames)
        attention = clip.attention
        return {
            **figures,
            "no_effect": no_effect(attention),
            "speedup": reported_speedup(dense, clip),
            "seconds": clip.seconds["denoise"],
            "dense_seconds": dense.seconds["denoise"],
            "density_sparse": attention.density["sparse_calls"],
            "density_all": attention.density["all_calls"],
            "layers": attention.layers,
            "calls": attention.calls,
            "fallbacks": attention.fallbacks,
            "remarks": attention.remarks,
            "attention_seconds": attention.seconds,
            "config": attention.config,
        }

    def is_complete(self, record: Record) -> bool:
        """Return True if the videos of a setting exist with all their frames, and memory was not short."""
        if str(record.get("failed", "")).startswith(OUT_OF_MEMORY):
            return False
        names = [record[name] for name in ("video", "difference_video") if name in record]
        return all(holds_frames(self.out / name, record["frames"]) for name in names)

    def write_missing_dense(
        self, records: Sequence[Record], cases: Sequence[RenderSettings]
    ) -> None:
        """Write the dense videos that records name and that do not exist with all their frames."""
        frames_of = {
            record["dense_video"]: record["frames"] for record in records if "dense_video" in record
        }
        for case in cases:
            video = self.dense_video(case)
            if video in frames_of and not holds_frames(self.out / video, frames_of[video]):
                saved = load_frames(
                    self.out / "dense" / f"{self.runner.dense_name(case)}.safetensors"
                )
                frames = self.runner.dense(case).frames if saved is None else saved
                write_webm(self.out / video, frames, case.fps)

    def dense_video(self, case: RenderSettings) -> str:
        """Return the name of the video of a dense clip."""
        return f"clips/{self.runner.dense_name(case)}.webm"

    def _write_videos(
        self, setting: Setting, case: RenderSettings, dense: np.ndarray, other: np.ndarray
    ) -> dict[str, str]:
        """Write a clip, its difference from dense, and, the first time, the dense clip. Return their names."""
        name = digest(json.loads(self.key(setting, case)))
        videos = {
            "video": f"clips/{name}.webm",
            "difference_video": f"clips/{name}-difference.webm",
            "dense_video": self.dense_video(case),
        }
        write_webm(self.out / videos["video"], other, case.fps)
        write_webm(self.out / videos["difference_video"], difference(other, dense), case.fps)
        if not (self.out / videos["dense_video"]).exists():
            write_webm(self.out / videos["dense_video"], dense, case.fps)
        return videos
