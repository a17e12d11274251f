"""Caption accuracy in the tiny world, judged by its oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_accel_eval.metrics.clip_pairs import to_tensor

if TYPE_CHECKING:
    import numpy as np

    from dit_accel_assets.world import Scene


def caption_correct(clip: np.ndarray, scene: Scene) -> tuple[bool, str]:
    """Return True if a clip shows exactly the scene of its caption, and a description of what it shows.

    Args:
        clip: ``[T, H, W, 3]`` float in [0, 1], or uint8.
        scene: scene that the caption describes (`dit_accel_assets.world.parse_caption`).
    """
    from dit_accel_assets import oracle

    seen = oracle.look(to_tensor(clip).permute(0, 2, 3, 1).numpy())
    return seen.agrees_with(scene), str(seen)
