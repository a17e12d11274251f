"""The goal of a search, and the figures that settings reach."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from dit_accel_eval.tune.targets import Target

# The search wants a requested speed-up times this, which leaves room for the validation.
AMPLE = 1.03


@dataclass(frozen=True)
class Goal:
    """The aim of a search: the fastest profile that holds all targets, or the best quality at a speed.

    Attributes:
        targets: Bounds that must hold.
        speedup: Least speed-up. With it the search maximizes the first metric, PSNR if there is no target.
    """

    targets: tuple[Target, ...]
    speedup: float | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics to measure."""
        return tuple(dict.fromkeys([t.metric for t in self.targets] or ["psnr"]))

    def __str__(self) -> str:
        if self.speedup is None:
            return ", ".join(map(str, self.targets))
        return ", ".join([f"speedup>={self.speedup:g}", *map(str, self.targets)])


@dataclass
class Measurements:
    """Figures of a setting, clip by clip, or the reason why a clip could not be measured.

    Attributes:
        speedups: Speed-up of each clip.
        values: Figures of each metric by clip.
        idle: Number of clips by lever that did nothing there.
        failed: Why a clip could not be measured.
    """

    speedups: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    idle: dict[str, int] = field(default_factory=dict)
    failed: str | None = None

    @property
    def speedup(self) -> float:
        """Median speed-up."""
        return statistics.median(self.speedups)

    def add(self, speedup: float, values: Mapping[str, float], idle: Sequence[str] = ()) -> None:
        """Add the figures of a clip. A metric that is not finite has no value there, as without an object."""
        self.speedups.append(speedup)
        for lever in idle:
            self.idle[lever] = self.idle.get(lever, 0) + 1
        for name, value in values.items():
            measured = self.values.setdefault(name, [])
            if math.isfinite(value):
                measured.append(value)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {"speedups": self.speedups, "values": self.values, "idle": self.idle}


def read_measurements(trial: FrozenTrial) -> Measurements:
    """Return the figures of a trial."""
    return Measurements(**trial.user_attrs["measured"])
