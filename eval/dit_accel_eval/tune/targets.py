"""Quality targets of a profile, and the metrics that measure them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dit_accel.errors import InvalidSettings
from dit_accel_eval.metrics.caption import caption_correct
from dit_accel_eval.metrics.cvvdp import cvvdp, cvvdp_or_reason
from dit_accel_eval.metrics.lpips import lpips, lpips_or_reason
from dit_accel_eval.metrics.psnr import psnr
from dit_accel_eval.metrics.ssim import ssim, ssim_or_reason
from dit_accel_eval.metrics.st_lpips import st_lpips, st_lpips_or_reason

if TYPE_CHECKING:
    import numpy as np

Metric: TypeAlias = "Callable[[np.ndarray, np.ndarray, str, Path | None], float]"


# PSNR in dB from which a target does not tell clips apart. Rounding to 8 bits alone makes an error of 59 dB.
FINEST = 60.0


def _caption(clip: np.ndarray, _dense: np.ndarray, prompt: str, _backbone: Path | None) -> float:
    from dit_accel_assets.world import parse_caption

    scene = parse_caption(prompt)
    if scene is None:
        raise InvalidSettings(f"target caption needs captions of the tiny world, got {prompt!r}")
    return float(caption_correct(clip, scene)[0])


def _psnr_objects(clip: np.ndarray, dense: np.ndarray, *_: object) -> float:
    from dit_accel_assets import oracle

    return _capped(psnr(clip, dense, mask=oracle.object_mask(dense)))


def _capped(value: float) -> float:
    """Return a PSNR of at most `FINEST`. NaN stays NaN.

    Nobody sees a smaller error, and a few almost equal clips would widen the interval of the mean.
    """
    return FINEST if value > FINEST else value


METRICS: dict[str, Metric] = {
    "psnr": lambda clip, dense, *_: _capped(psnr(clip, dense)),
    "psnr_objects": _psnr_objects,
    "ssim": lambda clip, dense, *_: ssim(clip, dense),
    "lpips": lambda clip, dense, _, backbone: lpips(clip, dense, backbone=backbone),
    "st_lpips": lambda clip, dense, *_: st_lpips(clip, dense),
    "cvvdp": lambda clip, dense, *_: cvvdp(clip, dense),
    "caption": _caption,
}
LOWER = ("lpips", "st_lpips")
"""Metrics whose smaller values are better."""
# From this `widening` on, more clips narrow an interval more than a longer validation does.
WIDE = 2.0
# Height and width that suffice for every metric.
LARGE = 64
# Best value of each metric.
BEST = {
    **{"psnr": FINEST, "psnr_objects": FINEST, "ssim": 1.0, "caption": 1.0},
    **{"lpips": 0.0, "st_lpips": 0.0, "cvvdp": 10.0},
}


@dataclass(frozen=True)
class Target:
    """A bound on the mean of a metric.

    Attributes:
        metric: Name among `METRICS`.
        at_least: True if larger values are better.
        bound: Worst mean that is accepted.
    """

    metric: str
    at_least: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target such as ``psnr>=30`` or ``lpips<=0.1``.

        Raises:
            InvalidSettings: for another form, an unknown metric, or a bound on the wrong side.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+.\de]+)\s*", text)
        if match is None or match[1] not in METRICS:
            raise InvalidSettings(
                f"target {text!r} must be written like psnr>=30 or lpips<=0.1; metrics: {', '.join(METRICS)}"
            )
        try:
            bound = float(match[3])
        except ValueError:
            raise InvalidSettings(f"target {text!r}: {match[3]!r} is not a number") from None
        sign = "<=" if match[1] in LOWER else ">="
        if match[2] != sign:
            raise InvalidSettings(f"target {text!r}: use {sign} for {match[1]}")
        return cls(match[1], match[2] == ">=", bound)

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if self.at_least else '<='}{self.bound:g}"

    def margin(self, value: float) -> float:
        """Return the distance of a value from the bound, which is negative on the wrong side."""
        return value - self.bound if self.at_least else self.bound - value

    def loss(self, value: float) -> float:
        """Return the error that a value stands for. Errors of independent causes add up, squared ones for PSNR."""
        if self.metric in ("psnr", "psnr_objects"):
            return float(10 ** (-value / 10))
        return abs(BEST[self.metric] - value)

    def margins(
        self, values: Sequence[float], *, clips: int | None = None, level: float = 0.95
    ) -> tuple[float, float]:
        """Return the margins of the worse and the better end of the mean's interval.

        Args:
            values: Values of single clips. A share (``caption``) has Wilson's interval, every other mean Student's.
            clips: Number of clips that the interval is for, if they scatter like these. None is their own number.
            level: Confidence level.
        """
        low, high = self.interval(values, clips or len(values), level)
        ends = self.margin(low), self.margin(high)
        return min(ends), max(ends)

    def interval(
        self, values: Sequence[float], clips: int, level: float = 0.95
    ) -> tuple[float, float]:
        """Return the ends of the mean's interval, which are infinite for fewer than two values."""
        if len(values) < 2:
            return -math.inf, math.inf
        import numpy as np
        from scipy import stats

        from dit_accel_eval.statistics import proportion_ci

        mean = float(np.mean(values))
        if self.metric == "caption":
            proportion = proportion_ci(round(mean * clips), clips, level)
            return proportion.low, proportion.high
        spread = float(np.std(values, ddof=1))
        half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * spread / math.sqrt(clips)
        return mean - half, mean + half

    def holds(self, values: Sequence[float], level: float = 0.95) -> bool:
        """Return True if the whole interval of the mean is on the right side."""
        return self.margins(values, level=level)[0] >= 0

    def is_out_of_reach(self, values: Sequence[float]) -> bool:
        """Return True if even the better end of the interval is on the wrong side."""
        return self.margins(values)[1] < 0


def widening(clips: int) -> float:
    """Return how many times wider the interval of a mean is because a few clips estimate the spread.

    It is the ratio of the quantiles of Student's and of the normal distribution; infinite for fewer than two clips.
    """
    if clips < 2:
        return math.inf
    from scipy import stats

    return float(stats.t.ppf(0.975, clips - 1) / stats.norm.ppf(0.975))


def check_targets(
    targets: Sequence[Target],
    prompts: Sequence[str],
    backbone: Path | None,
    size: tuple[int, int] = (LARGE, LARGE),
) -> None:
    """Check that every target can be measured on frames of a size.

    Raises:
        InvalidSettings: for prompts that are not captions of the tiny world, a metric without its weights or package,
            or frames that are too small for a metric.
    """
    import numpy as np

    from dit_accel_assets.world import parse_caption

    metrics = [target.metric for target in targets]
    foreign = [prompt for prompt in prompts if parse_caption(prompt) is None]
    for name in metrics:
        if name in ("caption", "psnr_objects") and foreign:
            raise InvalidSettings(f"target {name} needs captions of the tiny world: {foreign[0]!r}")
    black = np.zeros((1, *(min(pixels, LARGE) for pixels in size), 3), np.float32)
    reasons = {}
    if "lpips" in metrics:
        reasons["lpips"] = lpips_or_reason(black, black, backbone=backbone)[1]
    if "ssim" in metrics:
        reasons["ssim"] = ssim_or_reason(black, black)[1]
    if "st_lpips" in metrics:
        reasons["st_lpips"] = st_lpips_or_reason(black, black)[1]
    if "cvvdp" in metrics:
        reasons["cvvdp"] = cvvdp_or_reason(black, black)[1]
    for name, reason in reasons.items():
        if reason:
            raise InvalidSettings(f"target {name}: {reason}")
