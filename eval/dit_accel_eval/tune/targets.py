"""Quality that a profile promises, and the metrics that measure it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from dit_accel.errors import BadInput
from dit_accel_assets import oracle
from dit_accel_assets.world import parse_caption
from dit_accel_eval.metrics.caption import caption_correct
from dit_accel_eval.metrics.lpips import lpips, lpips_or_reason
from dit_accel_eval.metrics.psnr import psnr
from dit_accel_eval.metrics.ssim import ssim
from dit_accel_eval.statistics import Estimate, estimate

HIGHEST = 100.0  # decibels that clips equal to dense count as: their PSNR is infinite

Metric = Callable[[np.ndarray, np.ndarray, str, Path | None], float]


def _caption(clip: np.ndarray, _dense: np.ndarray, prompt: str, _backbone: Path | None) -> float:
    scene = parse_caption(prompt)
    if scene is None:
        raise BadInput(f"target caption needs captions of the tiny world, got {prompt!r}")
    return float(caption_correct(clip, scene)[0])


METRICS: dict[str, Metric] = {
    "psnr": lambda clip, dense, *_: min(HIGHEST, psnr(clip, dense)),
    "psnr_objects": lambda clip, dense, *_: min(
        HIGHEST, psnr(clip, dense, mask=oracle.object_mask(dense))
    ),
    "ssim": lambda clip, dense, *_: ssim(clip, dense),
    "lpips": lambda clip, dense, _, backbone: lpips(clip, dense, backbone=backbone),
    "caption": _caption,
}


@dataclass(frozen=True)
class Target:
    """A bound on the mean of a metric, or on the speed-up (``speedup``)."""

    metric: str
    at_least: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """``psnr>=30``, ``lpips<=0.1``.

        Raises:
            BadInput: for anything else, or a metric that cannot be measured.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+.\de]+)\s*", text)
        if match is None or match[1] not in METRICS:
            raise BadInput(
                f"target {text!r} must be written like psnr>=30 or lpips<=0.1; metrics: {', '.join(METRICS)}"
            )
        try:
            bound = float(match[3])
        except ValueError:
            raise BadInput(f"target {text!r}: {match[3]!r} is no number") from None
        if (match[1] == "lpips") == (match[2] == ">="):
            raise BadInput(
                f"target {text!r}: nearer to dense is {'<=' if match[1] == 'lpips' else '>='}"
            )
        return cls(match[1], match[2] == ">=", bound)

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if self.at_least else '<='}{self.bound:g}"

    def margin(self, value: float) -> float:
        """How far a value is on the right side; negative on the wrong one."""
        return value - self.bound if self.at_least else self.bound - value

    def holds(self, values: Sequence[float]) -> bool:
        """Whether the whole 95 % interval of the mean is on the right side."""
        return self.margin_of(values, len(values)) >= 0

    def margin_of(self, values: Sequence[float], clips: int) -> float:
        """Margin that the worse end of the 95 % interval of the mean would have over ``clips`` clips that
        scatter as these do; minus infinity for a single value.
        """
        width = half_width(values, clips)
        return self.margin(float(np.mean(values))) - width

    def hopeless(self, values: Sequence[float]) -> bool:
        """Whether even the better end of the interval is on the wrong side."""
        return self.margin(float(np.mean(values))) + half_width(values, len(values)) < 0

    def measured(self, values: Sequence[float]) -> Estimate:
        return estimate(values)


def half_width(values: Sequence[float], clips: int) -> float:
    """Of the 95 % interval of a mean over ``clips`` clips, from the scatter of these; infinite for one value."""
    if len(values) < 2:
        return math.inf
    spread = float(np.std(values, ddof=1))
    return float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(clips)


def check_targets(targets: Sequence[Target], prompts: Sequence[str], backbone: Path | None) -> None:
    """Refuse what cannot be measured here, before anything is rendered.

    Raises:
        BadInput: for captions that are none, or LPIPS without its weights.
    """
    names = {target.metric for target in targets}
    if names & {"caption", "psnr_objects"}:
        for prompt in prompts:
            if parse_caption(prompt) is None:
                raise BadInput(f"target {min(names)} needs captions of the tiny world: {prompt!r}")
    if "lpips" in names:
        black = np.zeros((1, 64, 64, 3), np.float32)
        reason = lpips_or_reason(black, black, backbone=backbone)[1]
        if reason:
            raise BadInput(f"target lpips: {reason}")
