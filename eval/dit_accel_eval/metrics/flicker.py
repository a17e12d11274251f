"""Temporal flicker: how much frames change from one to the next."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dit_accel_eval.metrics.clips import one, paired


def flicker(clip: np.ndarray) -> float:
    """Mean absolute difference of successive frames, in [0, 1] (what VBench's temporal flickering is made
    of); 0 for a single frame.

    Args:
        clip: ``[T, H, W, C]`` float in [0, 1], or uint8.
    """
    frames = one(clip)
    if len(frames) < 2:
        return 0.0
    steps = [float((after - before).abs().mean()) for before, after in pairwise(frames)]
    return sum(steps) / len(steps)


def flicker_difference(clip: np.ndarray, reference: np.ndarray) -> float:
    """`flicker` of a clip less that of its reference: above 0 if the clip flickers more."""
    paired(clip, reference)
    return flicker(clip) - flicker(reference)
