"""What every metric takes: two clips ``[T, H, W, 3]`` (or ``[T, H, W, C]``) in [0, 1], checked and
laid out for torch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class NoBackbone(LookupError):
    """The weights that a learned metric is built on are not on this machine."""


def paired(first: np.ndarray, second: np.ndarray) -> tuple[Tensor, Tensor]:
    """Two clips as float32 ``[T, C, H, W]`` in [0, 1]; uint8 is divided by 255.

    Raises:
        ValueError: if shapes differ, are not four-dimensional, or values are not finite.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"clips must have one shape, got {list(first.shape)} and {list(second.shape)}"
        )
    return one(first), one(second)


def one(clip: np.ndarray) -> Tensor:
    """A clip as float32 ``[T, C, H, W]`` in [0, 1]; uint8 is divided by 255.

    Raises:
        ValueError: if it is not four-dimensional, has no frame, or values are not finite.
    """
    if clip.ndim != 4:
        raise ValueError(f"a clip must have shape [T, H, W, C], got {list(clip.shape)}")
    if not len(clip):
        raise ValueError("a clip must have at least one frame")
    frames = torch.from_numpy(np.ascontiguousarray(clip))
    frames = frames.float() / 255 if clip.dtype == np.uint8 else frames.float()
    if not bool(torch.isfinite(frames).all()):
        raise ValueError("a clip must be finite, got NaN or infinity")
    return frames.permute(0, 3, 1, 2)
