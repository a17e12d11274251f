"""A reward for tests: how far a clip is from what its prompt gives without guidance. Only a head whose
perturbation changes something scores above 0.
"""

import numpy as np

UNGUIDED: dict[str, np.ndarray] = {}


def distance(frames: np.ndarray, prompt: str) -> float:
    return float(np.abs(frames - UNGUIDED[prompt]).mean())


def nearness(frames: np.ndarray, prompt: str) -> float:
    return -distance(frames, prompt)


def broken(frames: np.ndarray, prompt: str) -> float:
    return float("nan")
