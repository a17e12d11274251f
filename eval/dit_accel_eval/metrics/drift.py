"""Drift: whether errors grow from the first frames to the last."""

from __future__ import annotations

import numpy as np
from scipy import stats

from dit_accel_eval.metrics.clips import paired


def drift(clip: np.ndarray, reference: np.ndarray) -> float:
    """How much the root mean square error to the reference grows from the first to the last frame, in [0, 1],
    by a straight line through all frames; 0 for a single frame.

    Args:
        clip, reference: ``[T, H, W, C]`` float in [0, 1], or uint8.
    """
    first, second = paired(clip, reference)
    if len(first) < 2:
        return 0.0
    pairs = zip(first, second, strict=True)
    errors = np.array([float((a - b).square().mean().sqrt()) for a, b in pairs])
    time = np.linspace(0.0, 1.0, len(errors))
    return float(stats.linregress(time, errors).slope)
