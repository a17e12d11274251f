"""Peak signal-to-noise ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_eval.metrics.clip_pairs import paired

if TYPE_CHECKING:
    import numpy as np

# Decibels of an equal frame in a clip with other frames.
HIGHEST = 100.0


def psnr(clip: np.ndarray, reference: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Return the PSNR in dB for values in [0, 1], as the mean over frames.

    Equal clips have infinite PSNR. In other clips a frame counts as 100 dB at most.

    Args:
        clip, reference: ``[T, H, W, C]`` float in [0, 1], or uint8.
        mask: bool ``[T, H, W]``, the pixels to compare. Frames without a pixel are skipped; if all are, the result
            is NaN.
    """
    import numpy as np
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = paired(clip, reference)
    frames = list(zip(first, second, strict=True))
    if mask is not None:
        masks = [torch.from_numpy(m) for m in mask]
        frames = [(a[:, m], b[:, m]) for (a, b), m in zip(frames, masks, strict=True) if m.any()]
    values = [float(peak_signal_noise_ratio(a, b, data_range=(0.0, 1.0))) for a, b in frames]
    if not values:
        return float("nan")
    return float("inf") if np.isinf(values).all() else float(np.minimum(values, HIGHEST).mean())
