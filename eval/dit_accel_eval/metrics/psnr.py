"""Peak signal-to-noise ratio."""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from dit_accel_eval.metrics.clips import paired

HIGHEST = 100.0  # decibels that one equal frame among others counts as


def psnr(clip: np.ndarray, reference: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """PSNR in dB for values in [0, 1], per frame, mean over frames; infinite for equal clips. Frames that are
    equal, or nearer than 100 dB, in clips that are not count as 100 dB.

    Args:
        clip, reference: ``[T, H, W, C]`` float in [0, 1], or uint8.
        mask: bool ``[T, H, W]``; only these pixels count, frames without any are left out. NaN if
            none has any.
    """
    first, second = paired(clip, reference)
    frames = list(zip(first, second, strict=True))
    if mask is not None:
        kept = [torch.from_numpy(m) for m in mask]
        frames = [(a[:, m], b[:, m]) for (a, b), m in zip(frames, kept, strict=True) if m.any()]
    values = [float(peak_signal_noise_ratio(a, b, data_range=(0.0, 1.0))) for a, b in frames]
    if not values:
        return float("nan")
    return float("inf") if np.isinf(values).all() else float(np.minimum(values, HIGHEST).mean())
