"""Structural similarity."""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from dit_accel_eval.metrics.clips import paired


def ssim(clip: np.ndarray, reference: np.ndarray) -> float:
    """SSIM with a Gaussian window (sigma 1.5, 11 x 11) for values in [0, 1], per frame, mean over
    frames.

    Args:
        clip, reference: ``[T, H, W, C]`` float in [0, 1], or uint8.
    """
    first, second = paired(clip, reference)
    values = [
        float(
            torch.as_tensor(
                structural_similarity_index_measure(a[None], b[None], data_range=(0.0, 1.0))
            )
        )
        for a, b in zip(first, second, strict=True)
    ]
    return float(np.mean(values))
