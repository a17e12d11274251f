"""Drift: the growth of errors from the first frame to the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_accel_eval.metrics.clip_pairs import paired

if TYPE_CHECKING:
    import numpy as np


def drift(clip: np.ndarray, reference: np.ndarray) -> float:
    """Return the growth of the root mean square error from the first to the last frame.

    The growth is the slope of a straight line through the errors of all frames. It is 0 for a single frame.

    Args:
        clip, reference: ``[T, H, W, C]`` float in [0, 1], or uint8.
    """
    import numpy as np
    from scipy import stats

    first, second = paired(clip, reference)
    if len(first) < 2:
        return 0.0
    pairs = zip(first, second, strict=True)
    errors = np.array([float((a - b).square().mean().sqrt()) for a, b in pairs])
    time = np.linspace(0.0, 1.0, len(errors))
    return float(stats.linregress(time, errors).slope)
