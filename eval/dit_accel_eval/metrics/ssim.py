"""Structural similarity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_eval.metrics.clip_pairs import paired

if TYPE_CHECKING:
    import numpy as np


def ssim(clip: np.ndarray, reference: np.ndarray) -> float:
    """Return the SSIM for values in [0, 1], as the mean over frames.

    The window is an 11 x 11 Gaussian with sigma 1.5.

    Args:
        clip, reference: ``[T, H, W, C]`` float in [0, 1], or uint8.
    """
    import numpy as np
    from torchmetrics.functional.image import structural_similarity_index_measure

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
