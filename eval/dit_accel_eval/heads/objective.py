"""The value that a head search maximises, computed from the scores of a candidate's clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

ClipScores: TypeAlias = Mapping[str, float]
"""Scores of one clip by name."""

SCORE = "score"
"""Name of the only score of most rewards."""


def get_score(means: ClipScores) -> float:
    """Return the only score."""
    return means[SCORE]


@dataclass(frozen=True)
class Objective:
    """The value of a candidate: a function of the means of its clips' scores.

    Attributes:
        combine: Function of the mean scores.
        thresholds: Least mean scores of a head that a round may choose.
    """

    combine: Callable[[ClipScores], float] = get_score
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def evaluate(self, clips: Sequence[ClipScores]) -> float:
        """Return the value of a candidate."""
        return self.combine(compute_means(clips))

    def accepts(self, clips: Sequence[ClipScores]) -> bool:
        """Return True if the mean scores reach their thresholds."""
        means = compute_means(clips)
        return all(means[name] >= least for name, least in self.thresholds.items())

    def spread(self, clips: Sequence[ClipScores]) -> list[float]:
        """Return one number per clip. Their mean is the value, and their spread is that of a mean of clips.

        For one score these are the scores. For a function of several means they are the jackknife's pseudo-values,
        moved to the value of all clips.
        """
        if self.combine is get_score:
            return [clip[SCORE] for clip in clips]
        value, count = self.evaluate(clips), len(clips)
        if count < 2:
            return [value] * count
        without = [self.evaluate([*clips[:i], *clips[i + 1 :]]) for i in range(count)]
        middle = math.fsum(without) / count
        return [value + (count - 1) * (middle - other) for other in without]


def compute_means(clips: Sequence[ClipScores]) -> dict[str, float]:
    """Return the mean of each score over the clips."""
    import numpy as np

    return {name: float(np.mean([clip[name] for clip in clips])) for name in clips[0]}


def harmonic_mean(first: float, second: float) -> float:
    """Return the harmonic mean of two numbers, or 0 if their sum is not above 0."""
    total = first + second
    return 2 * first * second / total if total > 0 else 0.0


# Released search of HeadHunter (3828d1c): it combines the mean scores of a head, not the scores of an image.
OBJECTIVES = {
    "harmonic-pick-clip": Objective(lambda means: harmonic_mean(means["pick"], means["clip"])),
    "pickscore-thresholding-clip": Objective(
        lambda means: means["clip"], {"pick": 20.0, "aesthetic": 6.0}
    ),
}


def find_objective(reward: str) -> Objective:
    """Return what a search maximises with a reward."""
    return OBJECTIVES.get(reward, Objective())
