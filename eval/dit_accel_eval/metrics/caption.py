"""Caption accuracy in the tiny world, by its oracle."""

from __future__ import annotations

import numpy as np

from dit_accel_assets import oracle
from dit_accel_assets.world import Scene
from dit_accel_eval.metrics.clips import one


def caption_correct(clip: np.ndarray, scene: Scene) -> tuple[bool, str]:
    """Whether a clip shows exactly what a caption says, and what it shows.

    Args:
        clip: ``[T, H, W, 3]`` float in [0, 1], or uint8.
        scene: what the caption says (`dit_accel_assets.world.parse_caption`).
    """
    verdict = oracle.look(one(clip).permute(0, 2, 3, 1).numpy())
    return verdict.agrees_with(scene), str(verdict)
