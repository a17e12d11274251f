"""Structural similarity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_eval.metrics.clip_pairs import TooSmall, check_least_size, paired

if TYPE_CHECKING:
    import numpy as np

# Width of the window.
LEAST_SIZE = 11


def ssim(clip: np.ndarray, reference: np.ndarray) -> float:
    """Return the SSIM for values in [0, 1], as the mean over frames.

    The window is an 11 x 11 Gaussian with sigma 1.5.

    Args:
        clip, reference: ``[T, H, W, C]`` float in [0, 1], or uint8.

    Raises:
        TooSmall: for frames smaller than the window.
    """
    import numpy as np
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = paired(clip, reference)
    check_least_size(clip, LEAST_SIZE, "SSIM")
    values = [
        float(
            torch.as_tensor(
                structural_similarity_index_measure(a[None], b[None], data_range=(0.0, 1.0))
            )
        )
        for a, b in zip(first, second, strict=True)
    ]
    return float(np.mean(values))


def ssim_or_reason(clip: np.ndarray, reference: np.ndarray) -> tuple[float | None, str | None]:
    """Return `ssim` and None, or None and the reason if the frames are too small."""
    try:
        return ssim(clip, reference), None
    except TooSmall as error:
        return None, str(error)
