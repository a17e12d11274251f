"""Check clips ``[T, H, W, C]`` in [0, 1] and convert them to tensors; every metric starts here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class NoBackbone(LookupError):
    """The network weights of a learned metric are not on this machine."""


class TooSmall(ValueError):
    """Frames have fewer pixels than a metric needs."""


def check_least_size(clip: np.ndarray, least: int, metric: str) -> None:
    """Check that frames ``[T, H, W, C]`` have a least height and width.

    Raises:
        TooSmall: if they do not.
    """
    height, width = clip.shape[1:3]
    if min(height, width) < least:
        raise TooSmall(
            f"{metric} needs at least {least} x {least} pixels, and the frames have {height} x {width}"
        )


def paired(first: np.ndarray, second: np.ndarray) -> tuple[Tensor, Tensor]:
    """Convert two clips as `to_tensor` does.

    Raises:
        ValueError: for clips of different shapes, or as `to_tensor`.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"clips must have the same shape, got {list(first.shape)} and {list(second.shape)}"
        )
    return to_tensor(first), to_tensor(second)


def to_tensor(clip: np.ndarray) -> Tensor:
    """Convert a clip ``[T, H, W, C]`` to float32 ``[T, C, H, W]`` in [0, 1]; uint8 is divided by 255.

    Raises:
        ValueError: for a clip that is not four-dimensional, has no frame, or has values that are not finite.
    """
    import numpy as np

    if clip.ndim != 4:
        raise ValueError(f"a clip must have shape [T, H, W, C], got {list(clip.shape)}")
    if not len(clip):
        raise ValueError("a clip must have at least one frame")
    frames = torch.from_numpy(np.ascontiguousarray(clip))
    frames = frames.float() / 255 if clip.dtype == np.uint8 else frames.float()
    if not bool(torch.isfinite(frames).all()):
        raise ValueError("a clip must be finite, got NaN or infinity")
    return frames.permute(0, 3, 1, 2)
