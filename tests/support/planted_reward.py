"""Rewards for tests: the distance of a clip from the unguided clip of its prompt.

Only a head whose perturbation changes the clip scores above 0.
"""

import numpy as np

UNGUIDED: dict[str, np.ndarray] = {}


def distance(frames: np.ndarray, prompt: str) -> float:
    """Return the mean distance from the unguided clip."""
    return float(np.abs(frames - UNGUIDED[prompt]).mean())


def nearness(frames: np.ndarray, prompt: str) -> float:
    """Return the negative distance from the unguided clip."""
    return -distance(frames, prompt)


def broken(frames: np.ndarray, prompt: str) -> float:
    """Return NaN, which no search accepts."""
    return float("nan")
