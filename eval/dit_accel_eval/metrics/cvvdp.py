"""ColorVideoVDP (Mantiuk et al., SIGGRAPH 2024), by the package of its authors."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel_eval.metrics.clip_pairs import NoBackbone, paired

if TYPE_CHECKING:
    import numpy as np

PACKAGE = "pycvvdp"
# Viewer and speed that the metric models: a 4K display of 30 inches, and frames per second.
DISPLAY = "standard_4k"
FPS = 16


def cvvdp(clip: np.ndarray, reference: np.ndarray) -> float:
    """Return the quality of a clip in just-objectionable differences (JOD): 10 is equal, 9 is one step worse.

    Args:
        clip, reference: ``[T, H, W, 3]`` float in [0, 1], or uint8, seen at 16 frames per second on a 4K display.

    Raises:
        NoBackbone: if the package is not installed.
    """
    first, second = paired(clip, reference)
    value, _ = load_cvvdp().predict(first, second, dim_order="FCHW", frames_per_second=FPS)
    return float(value)


def cvvdp_or_reason(clip: np.ndarray, reference: np.ndarray) -> tuple[float | None, str | None]:
    """Return `cvvdp` and None, or None and the reason if it cannot be measured."""
    try:
        return cvvdp(clip, reference), None
    except NoBackbone as error:
        return None, str(error)


def find_cvvdp() -> Path:
    """Return the place of the package.

    Raises:
        NoBackbone: if it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise NoBackbone("ColorVideoVDP needs a package: pip install 'dit_accel[metrics]'")
    return Path(spec.origin)


@cache
def load_cvvdp() -> Any:
    """Load the metric for CPUs, once for the process.

    Raises:
        NoBackbone: if the package cannot be imported.
    """
    import torch

    find_cvvdp()
    path = list(sys.path)
    try:
        import pycvvdp
    except ImportError as error:
        raise NoBackbone(f"ColorVideoVDP cannot be imported: {error}") from None
    finally:
        # The package adds its folder, whose modules have the names of others.
        sys.path[:] = path
    return pycvvdp.cvvdp(display_name=DISPLAY, quiet=True, device=torch.device("cpu"))
