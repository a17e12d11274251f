"""The settings of perturbed-attention guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.io.parsing import check_types
from dit_accel_pipelines import Family, families

Perturbation = Literal[
    "identity",
    "uniform",
    "mean-query",
    "blurred-query",
    "renormalized-identity",
    "zeroed-identity",
]
Interpolation = Literal["linear", "fisher-rao", "slerp", "log-linear"]
TextMode = Literal["visual", "joint"]


@dataclass(frozen=True)
class PerturbedGuidance:
    """Settings of guidance away from the prediction of a model whose attention is weakened.

    The prediction becomes ``cond + scale (cond - perturbed)``, in addition to classifier-free guidance. PAG (Ahn et
    al. 2024) perturbs all heads of a layer with softness 1. SoftPAG (HeadHunter, arXiv 2506.10978, eq. 7) perturbs
    single heads.

    Attributes:
        scale: Weight of the difference. 0 turns guidance off.
        softness: Weight u of the perturbed attention, ``A' = (1 - u) A + u P``. 0 turns the perturbation off.
        interval: Guided part of the scheduler's steps, as two fractions; the end is excluded. It counts from pure
            noise, so image-to-image starts later in it.
        perturbation: The attention map P. With ``"identity"`` each token attends to itself only. With ``"uniform"``
            it attends to all tokens equally. With ``"mean-query"`` it attends with the mean of all queries, which is
            SEG with infinite blur. With ``"blurred-query"`` it attends with queries that are blurred over the token
            grid, which is SEG (arXiv 2408.00760). With ``"renormalized-identity"`` the weight on all visual tokens
            moves to the token itself. With ``"zeroed-identity"`` the weight on other visual tokens is lost.
        sigma: Standard deviation of the blur along rows and columns, in tokens, for ``"blurred-query"``. Each frame
            of a video is blurred by itself.
        interpolation: The path from A to the identity map: ``"linear"``, or one of HeadHunter's other paths,
            ``"fisher-rao"``, ``"slerp"`` and ``"log-linear"``. Those need text mode ``"joint"``.
        text_mode: Tokens that are perturbed in joint attention over visual and text tokens. ``"visual"`` perturbs
            only attention from visual to visual tokens, ``"joint"`` all of it.
        rescale: How far the difference is rescaled, from 0 to 1. At 1 it is multiplied by the ratio of the standard
            deviation of ``cond`` to that of ``cond`` plus the difference, separately for each sample.
        adaptive: Decrease of the scale per unit of noise level below 1000. The scale stays at 0 or above. The noise
            level is the timestep, or 1000 minus the timestep if the scheduler counts up, as Mochi's does.
        share_prefix: Reuse the clean forward's outputs of the blocks before the first perturbed one.

    Raises:
        InvalidSettings: If a value is out of range.
    """

    scale: float = 3.0
    softness: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    perturbation: Perturbation = "identity"
    sigma: float | None = None
    interpolation: Interpolation = "linear"
    text_mode: TextMode = "visual"
    rescale: float = 0.0
    adaptive: float = 0.0
    share_prefix: bool = True

    def __post_init__(self) -> None:
        check_types(self, "guidance")
        for name in ("scale", "adaptive"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InvalidSettings(
                    f"{name} must be 0 or more, and finite, got {getattr(self, name)}"
                )
        for name in ("softness", "rescale"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InvalidSettings(f"{name} must be in [0, 1], got {getattr(self, name)}")
        start, end = self.interval
        if not 0.0 <= start < end <= 1.0:
            raise InvalidSettings(
                f"interval must be two rising fractions of the steps, such as (0, 0.4), got {self.interval}"
            )
        for name, kind in (
            ("perturbation", Perturbation),
            ("interpolation", Interpolation),
            ("text_mode", TextMode),
        ):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise InvalidSettings(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        self._check_map()

    def _check_map(self) -> None:
        """Check that the settings of the perturbed map go together."""
        blurs = self.perturbation == "blurred-query"
        if self.sigma is not None and not 0.0 < self.sigma < math.inf:
            raise InvalidSettings(
                f"sigma must be above 0, and finite, got {self.sigma}: the perturbation mean-query is an infinite blur"
            )
        if blurs != (self.sigma is not None):
            raise InvalidSettings(
                f"sigma and the perturbation blurred-query go together, got sigma {self.sigma} and "
                f"{self.perturbation}: give both, or neither"
            )
        if blurs and self.text_mode == "joint":
            raise InvalidSettings(
                "blurred-query blurs visual tokens only, because text lies in no grid: use text_mode visual"
            )
        if self.interpolation != "linear" and (self.perturbation, self.text_mode) != (
            "identity",
            "joint",
        ):
            raise InvalidSettings(
                f"the interpolation {self.interpolation} is defined for the perturbation identity and text_mode joint, "
                f"got {self.perturbation} and {self.text_mode}"
            )

    def compute_scale(self, noise_level: float) -> float:
        """Return the scale at a noise level from 0 to 1000 (diffusers' ``pag_adaptive_scale``)."""
        return max(0.0, self.scale - self.adaptive * (1000.0 - noise_level))

    def guides_step(self, step: int, num_steps: int | None) -> bool:
        """Return True if a step is guided.

        Args:
            step: Index of the step, counted from 0.
            num_steps: Number of steps, or None if it is unknown.

        Raises:
            RunFailed: If there is an interval and the number of steps is unknown.
        """
        if self.scale == 0.0 or self.softness == 0.0:
            return False
        if self.interval == (0.0, 1.0):
            return True
        if num_steps is None:
            raise RunFailed(
                "guidance with an interval needs the number of steps, which only a pipeline knows: leave "
                "the interval out, or enable guidance on the pipeline"
            )
        start, end = (fraction * num_steps for fraction in self.interval)
        return start - 1e-9 <= step < end - 1e-9


def check_family(family: Family) -> None:
    """Check that a model family can be guided.

    Raises:
        InvalidSettings: If it cannot. The message lists the families that can.
    """
    if not family.guidance:
        supported = ", ".join(known.name for known in families() if known.guidance)
        raise InvalidSettings(
            f"perturbed guidance does not know how {family.name} calls its transformer: choose a model of {supported}"
        )


def check_map(family: Family, settings: PerturbedGuidance) -> None:
    """Check that a family has the attention map that settings perturb.

    Raises:
        InvalidSettings: If its attention is linear, and the settings need a map.
    """
    chosen = (settings.perturbation, settings.interpolation)
    if family.linear and chosen != ("identity", "linear"):
        raise InvalidSettings(
            f"{family.name} has linear attention without a map, so guidance has only the perturbation identity and the "
            f"interpolation linear there, got {' and '.join(chosen)}"
        )
