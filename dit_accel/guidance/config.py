"""The settings of perturbed-attention guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from dit_accel.errors import InvalidSettings
from dit_accel_pipelines import Family, families

Perturbation = Literal["identity", "uniform", "mean-query"]
TextMode = Literal["visual", "joint"]


@dataclass(frozen=True)
class PerturbedGuidance:
    """Guidance away from what the model predicts with weakened attention: the prediction becomes
    ``cond + scale (cond - perturbed)``, whatever classifier-free guidance adds to it. PAG (Ahn et al. 2024)
    perturbs whole layers with softness 1; SoftPAG (HeadHunter, arXiv 2506.10978, eq. 7) single heads.

    Attributes:
        scale: weight of the difference; 0 is no guidance.
        softness: share u of the perturbed attention, ``A' = (1 - u) A + u P``; 0 is no perturbation.
        interval: first and last (excluded) share of the scheduler's steps that are guided, counted from pure
            noise: image-to-image begins later.
        perturbation: what P is. ``"identity"``: each token attends to itself. ``"uniform"``: to all alike.
            ``"mean-query"``: with the mean of all queries (SEG with infinite blur).
        text_mode: in joint attention over visual and text tokens, ``"visual"`` perturbs only what visual
            tokens do among each other, ``"joint"`` all rows and keys.
        rescale: 0 to 1: how far the difference shrinks so that the result keeps the standard deviation of
            ``cond`` (of each sample).
        adaptive: the scale falls by this for each unit that the noise level is below 1000, not below 0: that is
            the timestep, or where a scheduler counts up, as Mochi's, 1000 less the timestep.
        share_prefix: take the blocks before the first perturbed one from the clean forward.
    """

    scale: float = 3.0
    softness: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    perturbation: Perturbation = "identity"
    text_mode: TextMode = "visual"
    rescale: float = 0.0
    adaptive: float = 0.0
    share_prefix: bool = True

    def __post_init__(self) -> None:
        for name in ("scale", "adaptive"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, and finite, got {getattr(self, name)}")
        for name in ("softness", "rescale"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        start, end = self.interval
        if not 0.0 <= start < end <= 1.0:
            raise ValueError(
                f"interval must be two rising shares of the steps, such as (0, 0.4), got {self.interval}"
            )
        for name, kind in (("perturbation", Perturbation), ("text_mode", TextMode)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    def scale_at(self, level: float) -> float:
        """The scale at a noise level of 0 to 1000 (diffusers' ``pag_adaptive_scale``)."""
        return max(0.0, self.scale - self.adaptive * (1000.0 - level))

    def holds(self, step: int, num_steps: int | None) -> bool:
        """Whether a step counted from 0 is guided.

        Raises:
            RuntimeError: for an interval where nothing tells the number of steps.
        """
        if self.scale == 0.0 or self.softness == 0.0:
            return False
        if self.interval == (0.0, 1.0):
            return True
        if num_steps is None:
            raise RuntimeError(
                "guidance with an interval needs the number of steps, which only a pipeline tells: leave "
                "the interval out, or enable it on the pipeline"
            )
        start, end = (share * num_steps for share in self.interval)
        return start - 1e-9 <= step < end - 1e-9


def check_family(family: Family) -> None:
    """Refuse a family that cannot be guided.

    Raises:
        InvalidSettings: naming those that can.
    """
    if not family.guidance:
        raise InvalidSettings(
            f"perturbed guidance does not know how {family.name} calls its transformer; "
            f"it does for {', '.join(f.name for f in families() if f.guidance)}"
        )
