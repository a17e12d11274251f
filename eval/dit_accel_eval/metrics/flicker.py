"""Temporal flicker: the change from one frame to the next."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from dit_accel_eval.metrics.clip_pairs import paired, to_tensor

if TYPE_CHECKING:
    import numpy as np


def flicker(clip: np.ndarray) -> float:
    """Return the mean absolute difference of successive frames, in [0, 1].

    VBench's temporal flickering is built on this figure. It is 0 for a single frame.

    Args:
        clip: ``[T, H, W, C]`` float in [0, 1], or uint8.
    """
    frames = to_tensor(clip)
    if len(frames) < 2:
        return 0.0
    steps = [float((after - before).abs().mean()) for before, after in pairwise(frames)]
    return sum(steps) / len(steps)


def flicker_difference(clip: np.ndarray, reference: np.ndarray) -> float:
    """Return `flicker` of a clip minus that of its reference; above 0, the clip flickers more."""
    paired(clip, reference)
    return flicker(clip) - flicker(reference)
