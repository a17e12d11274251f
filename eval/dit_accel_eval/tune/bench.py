"""Measure a profile on a clip for a search: its speed-up over dense attention, and the metrics of the goal."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from dit_accel import Profile
from dit_accel.acceleration import calibrate_mag_cache
from dit_accel.core.levers import name_levers
from dit_accel.errors import RunFailed, first_line
from dit_accel.generation.render import Clip, call_pipeline
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.methods import Dense
from dit_accel.runtime.active_sessions import preserved_session
from dit_accel.runtime.cost_model import SlowdownWarning
from dit_accel_eval.paired_runner import PairedRunner
from dit_accel_eval.quality_metrics import no_effect, speedup
from dit_accel_eval.settings import Setting
from dit_accel_eval.tune.goal import Goal
from dit_accel_eval.tune.targets import METRICS

# Frames that are not finite, too little memory, a lever that fails in a run, and settings that do nothing.
FAILURES = (ValueError, RunFailed, torch.OutOfMemoryError)


class NoEffect(ValueError):
    """Nothing that a profile sets had an effect, so its figures are those of dense attention."""


@dataclass(frozen=True)
class Bench:
    """Measures the metrics of a goal, and the speed-up, against dense attention."""

    runner: PairedRunner
    goal: Goal
    backbone: Path | None = None

    def measure(
        self, profile: Profile, case: RenderSettings
    ) -> tuple[float, dict[str, float], list[str]]:
        """Return the speed-up of a clip over dense, the metrics of the goal, and what did nothing.

        Raises:
            ValueError: for frames that are not finite.
            NoEffect: if nothing had an effect, because a speed-up would be chance.
            RunFailed: if a lever fails in the run.
            torch.OutOfMemoryError: if the device has too little memory.
        """
        if isinstance(profile.method, Dense) and not profile.has_levers:
            raise NoEffect("every lever is off")
        dense = self.runner.dense(case)
        clip = self._render(profile, case)
        reason = no_effect(clip.attention)
        if reason:
            raise NoEffect(reason)
        values = {
            name: METRICS[name](clip.frames, dense.frames, case.prompt, self.backbone)
            for name in self.goal.metrics
        }
        idle = [clip.attention.no_effect] if clip.attention.no_effect else []
        return speedup(dense, clip), values, [*idle, *clip.attention.idle_levers]

    def prepare(self, case: RenderSettings) -> None:
        """Render the dense reference of a clip, which every setting is compared with.

        Raises:
            RunFailed: if dense attention fails, because then no setting can be measured.
        """
        try:
            self.runner.dense(case)
        except FAILURES as error:
            raise RunFailed(f"the dense reference failed: {first_line(error)}") from error

    def calibrate(self, profile: Profile, case: RenderSettings) -> Profile:
        """Return a profile with the ratios of its MagCache, measured on a clip."""
        pipe, (settings, _) = self.runner.pipe, validate(case)
        with warnings.catch_warnings(), preserved_session(pipe):
            warnings.simplefilter("ignore", SlowdownWarning)
            return calibrate_mag_cache(pipe, profile, lambda: call_pipeline(pipe, settings))

    def forget_times(self) -> None:
        """Time dense attention anew for every clip."""
        self.runner.forget_times()

    def _render(self, profile: Profile, case: RenderSettings) -> Clip:
        try:
            setting = Setting(warm_up_label(profile), profile)
            return self.runner.render(setting, case, describe_profile(profile))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if profile.compile is None:
                raise
            raise RunFailed(f"compile: {first_line(error)}") from error


def warm_up_label(profile: Profile) -> str:
    """Return a name for profiles that one warm-up serves."""
    linears = profile.linears.kind if profile.linears else "full"
    compiled = "compiled" if profile.compile else "eager"
    parts = (profile.method.name, profile.precision, profile.dense_precision, linears, compiled)
    return " ".join(parts)


def describe_profile(profile: Profile) -> str:
    """Return the levers of a profile in words."""
    is_dense = isinstance(profile.method, Dense)
    method = "dense attention" if is_dense else profile.method.name
    return " + ".join([method, *name_levers(profile.levers())])
