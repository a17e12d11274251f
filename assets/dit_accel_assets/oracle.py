"""The oracle of the tiny world: from the pixels of a clip alone, what is in it.

Each colour of the palette claims its pixels; the largest solid piece per frame is an object of that
colour. Its outline is compared with the three shapes at the same area and place, and its path with
the six motions. Where nothing fits, the answer is ``"none"``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from dit_accel_assets.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    ORBIT,
    SHAPES,
    TRAVEL,
    Scene,
    signed_distance,
)

NONE = "none"
COLOUR_TOLERANCE = 0.28  # Euclidean distance in RGB, each in [0, 1]
SMALLEST_AREA = 0.008  # of the frame; the smallest object of the world, a triangle, covers 0.0187
SEEN_FRAMES = 0.7
SHAPE_IOU = 0.75
PATH_ERROR = 0.085  # root mean square, in units of the frame
UNIT_AREA = {"circle": math.pi, "square": 3.24, "triangle": 1.08 * math.sqrt(3)}


@dataclass(frozen=True)
class Sighting:
    """One object as seen: each property from the world's words, or ``"none"``."""

    colour: str
    shape: str
    motion: str


@dataclass(frozen=True)
class Verdict:
    """What a clip shows: objects in no particular order, and the background."""

    things: frozenset[Sighting]
    background: str

    def agrees_with(self, scene: Scene) -> bool:
        """Whether this is exactly what the scene's caption says, no more and no less."""
        wanted = frozenset(Sighting(t.colour, t.shape, t.motion) for t in scene.things)
        return self.things == wanted and self.background == scene.background

    def __str__(self) -> str:
        seen = sorted(f"{t.colour} {t.shape} {t.motion}" for t in self.things) or ["nothing"]
        return " and ".join(seen) + f" on {self.background}"


def look(frames: np.ndarray) -> Verdict:
    """Say what a clip ``[T, H, W, 3]`` with values in [0, 1] shows.

    Raises:
        ValueError: for another layout, or values that are not finite.
    """
    frames = checked(frames)
    background = background_of(frames)
    masks = {c: m for c, m in colour_masks(frames).items() if present(m)}
    things = frozenset(Sighting(c, shape_of(m), motion_of(m)) for c, m in masks.items())
    return Verdict(things, background)


def object_mask(frames: np.ndarray) -> np.ndarray:
    """Where the objects of a clip are, as bool ``[T, H, W]``, two pixels of margin included."""
    masks = [m for m in colour_masks(checked(frames)).values() if present(m)]
    union = np.any(masks, axis=0) if masks else np.zeros(frames.shape[:3], bool)
    return ndimage.binary_dilation(union, np.ones((1, 3, 3), bool), iterations=2)


def checked(frames: np.ndarray) -> np.ndarray:
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must have shape [T, H, W, 3], got {list(frames.shape)}")
    if not np.isfinite(frames).all():
        raise ValueError("frames must be finite, got NaN or infinity")
    return np.asarray(frames, np.float32)


def background_of(frames: np.ndarray) -> str:
    """The background nearest to the median pixel of the clip, or none if it is far from all."""
    median = np.median(frames.reshape(-1, 3)[:: max(1, frames.size // 300_000)], axis=0)
    distance = {
        name: float(np.linalg.norm(median - np.array(rgb) / 255))
        for name, rgb in BACKGROUNDS.items()
    }
    name = min(distance, key=distance.__getitem__)
    return name if distance[name] < 0.1 else NONE


def colour_masks(frames: np.ndarray) -> dict[str, np.ndarray]:
    """For each colour the pixels of its largest solid piece per frame, bool ``[T, H, W]``."""
    names = [*COLOURS, *BACKGROUNDS]
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()], np.float32) / 255  # [9, 3]
    distance = np.stack([np.linalg.norm(frames - rgb, axis=-1) for rgb in palette])  # [9, T, H, W]
    nearest, near = distance.argmin(0), distance.min(0) < COLOUR_TOLERANCE
    return {c: largest_pieces((nearest == names.index(c)) & near) for c in COLOURS}


def largest_pieces(mask: np.ndarray) -> np.ndarray:
    """Keep the largest connected piece of each frame, thin rims removed; empty below the smallest
    area.
    """
    kept = np.zeros_like(mask)
    for frame, out in zip(mask, kept, strict=True):
        if frame.mean() < SMALLEST_AREA:
            continue
        solid = ndimage.binary_opening(frame, np.ones((3, 3), bool))
        pieces, count = ndimage.label(solid)
        if count:
            sizes = np.bincount(pieces.ravel())[1:]
            if sizes.max() >= SMALLEST_AREA * frame.size:
                out[:] = pieces == 1 + sizes.argmax()
    return kept


def present(mask: np.ndarray) -> bool:
    return bool(mask.any(axis=(1, 2)).mean() >= SEEN_FRAMES)


def centres(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times in [0, 1] of the frames that show the object, ``[N]``, and its centres there, ``[N,
    2]`` as (x, y).
    """
    frames, height, width = mask.shape
    seen = np.flatnonzero(mask.any(axis=(1, 2)))
    area = mask[seen].sum(axis=(1, 2))
    x = (mask[seen].sum(axis=1) * (np.arange(width) + 0.5)).sum(-1) / area / width
    y = (mask[seen].sum(axis=2) * (np.arange(height) + 0.5)).sum(-1) / area / height
    return seen / max(frames - 1, 1), np.stack([x, y], axis=-1)


def shape_of(mask: np.ndarray) -> str:
    """The shape whose outline, at the same area and centre, overlaps best (median IoU over up to
    nine frames).
    """
    _, height, width = mask.shape
    seen = np.flatnonzero(mask.any(axis=(1, 2)))
    seen = seen[np.linspace(0, len(seen) - 1, min(9, len(seen))).round().astype(int)]
    _, middle = centres(mask[seen])
    y = ((np.arange(height) + 0.5) / height)[:, None]
    x = ((np.arange(width) + 0.5) / width)[None]
    overlap: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for frame, (cx, cy) in zip(mask[seen], middle, strict=True):
        for shape in SHAPES:
            radius = math.sqrt(frame.mean() / UNIT_AREA[shape])
            ideal = signed_distance(shape, x - cx, y - cy, radius) < 0
            overlap[shape].append((frame & ideal).sum() / (frame | ideal).sum())
    score = {shape: float(np.median(values)) for shape, values in overlap.items()}
    best = max(score, key=score.__getitem__)
    return best if score[best] >= SHAPE_IOU else NONE


def motion_of(mask: np.ndarray) -> str:
    """The motion whose path, at its best offset (and phase), leaves the smallest error."""
    time, path = centres(mask)
    error = {motion: path_error(motion, time, path) for motion in MOTIONS}
    best = min(error, key=error.__getitem__)
    return best if error[best] < PATH_ERROR else NONE


def path_error(motion: str, time: np.ndarray, path: np.ndarray) -> float:
    """Root-mean-square distance of a path ``[N, 2]`` from a motion, offset and phase fitted."""
    if motion == "moving in a circle":
        z = (path - path.mean(0)) @ np.array([1, 1j])
        turn = np.exp(2j * math.pi * time)
        turn = turn - turn.mean()
        phase = np.vdot(turn, z)
        model = ORBIT * turn * (phase / abs(phase) if abs(phase) > 1e-9 else 1.0)
        return float(np.sqrt(np.mean(np.abs(z - model) ** 2)))
    direction = {
        "moving left": (-TRAVEL, 0.0),
        "moving right": (TRAVEL, 0.0),
        "moving up": (0.0, -TRAVEL),
        "moving down": (0.0, TRAVEL),
    }.get(motion, (0.0, 0.0))
    left_over = path - time[:, None] * np.array(direction)
    return float(np.sqrt(((left_over - left_over.mean(0)) ** 2).sum(-1).mean()))
