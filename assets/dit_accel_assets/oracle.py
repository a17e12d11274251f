"""Recognise the objects of the tiny world from the pixels of a clip.

Each pixel belongs to the nearest colour of the palette. The largest solid piece of a colour in a frame is an object
of that colour. Its outline is compared with the three shapes of the same area and position, and its path with the
six motions. If nothing fits, the answer is ``"none"``.
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

COLOUR_TOLERANCE = 0.28
"""Largest distance of a pixel from a colour: Euclidean in RGB, each in [0, 1]."""

BACKGROUND_TOLERANCE = 0.1
"""Largest distance of the median pixel from a background."""

SMALLEST_AREA = 0.008
"""Smallest share of a frame that an object covers; the smallest triangle of the world covers 0.0187."""

SEEN_FRAMES = 0.7
"""Smallest share of frames in which an object is visible."""

SHAPE_IOU = 0.75
"""Smallest overlap with a shape, as intersection over union."""

PATH_ERROR = 0.085
"""Largest distance from a motion's path: root mean square, in units of the frame."""

UNIT_AREA = {"circle": math.pi, "square": 3.24, "triangle": 1.08 * math.sqrt(3)}
"""Area of each shape at radius 1."""

DIRECTIONS = {
    "moving left": (-TRAVEL, 0.0),
    "moving right": (TRAVEL, 0.0),
    "moving up": (0.0, -TRAVEL),
    "moving down": (0.0, TRAVEL),
    "standing still": (0.0, 0.0),
}
"""Displacement (x, y) of each straight motion over a clip."""


@dataclass(frozen=True)
class Sighting:
    """One recognised object: each property is a word of the world or ``"none"``."""

    colour: str
    shape: str
    motion: str


@dataclass(frozen=True)
class Verdict:
    """Recognised content of a clip.

    Attributes:
        things: Objects, in no order.
        background: Name of the background's colour or ``"none"``.
    """

    things: frozenset[Sighting]
    background: str

    def agrees_with(self, scene: Scene) -> bool:
        """Return True if the clip shows exactly what the scene's caption says."""
        expected = frozenset(Sighting(t.colour, t.shape, t.motion) for t in scene.things)
        return self.things == expected and self.background == scene.background

    def __str__(self) -> str:
        things = sorted(f"{t.colour} {t.shape} {t.motion}" for t in self.things) or ["nothing"]
        return " and ".join(things) + f" on {self.background}"


def look(frames: np.ndarray) -> Verdict:
    """Return what a clip ``[T, H, W, 3]`` with values in [0, 1] shows.

    Raises:
        ValueError: for another shape, and for values that are not finite.
    """
    frames = check_frames(frames)
    masks = {colour: mask for colour, mask in colour_masks(frames).items() if is_present(mask)}
    things = frozenset(
        Sighting(colour, recognise_shape(mask), recognise_motion(mask))
        for colour, mask in masks.items()
    )
    return Verdict(things, recognise_background(frames))


def object_mask(frames: np.ndarray) -> np.ndarray:
    """Return the pixels of all objects in a clip, with a margin of two pixels, as bool ``[T, H, W]``."""
    masks = [mask for mask in colour_masks(check_frames(frames)).values() if is_present(mask)]
    union = np.any(masks, axis=0) if masks else np.zeros(frames.shape[:3], bool)
    dilated: np.ndarray = ndimage.binary_dilation(union, np.ones((1, 3, 3), bool), iterations=2)
    return dilated


def check_frames(frames: np.ndarray) -> np.ndarray:
    """Return frames as float32.

    Raises:
        ValueError: for a shape other than ``[T, H, W, 3]``, and for values that are not finite.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must have shape [T, H, W, 3], got {list(frames.shape)}")
    if not np.isfinite(frames).all():
        raise ValueError("frames must be finite, got NaN or infinity")
    return np.asarray(frames, np.float32)


def recognise_background(frames: np.ndarray) -> str:
    """Return the background nearest to the median pixel of a clip, or ``"none"`` if none is near."""
    median = np.median(frames.reshape(-1, 3)[:: max(1, frames.size // 300_000)], axis=0)
    distance = {
        name: float(np.linalg.norm(median - np.array(rgb) / 255))
        for name, rgb in BACKGROUNDS.items()
    }
    nearest = min(distance, key=distance.__getitem__)
    return nearest if distance[nearest] < BACKGROUND_TOLERANCE else NONE


def colour_masks(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Return for each colour the pixels of its largest solid piece in each frame, bool ``[T, H, W]``."""
    names = [*COLOURS, *BACKGROUNDS]
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()], np.float32) / 255  # [9, 3]
    offsets = (frames - rgb for rgb in palette)
    squares = np.stack([np.einsum("thwc,thwc->thw", o, o) for o in offsets])  # [9, T, H, W]
    nearest, is_near = squares.argmin(0), squares.min(0) < COLOUR_TOLERANCE**2
    return {c: largest_pieces((nearest == names.index(c)) & is_near) for c in COLOURS}


def largest_pieces(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected piece of each frame, without thin rims, if it is an object's size."""
    largest = np.zeros_like(mask)
    for frame, out in zip(mask, largest, strict=True):
        if frame.mean() < SMALLEST_AREA:
            continue
        solid = ndimage.binary_opening(frame, np.ones((3, 3), bool))
        pieces, count = ndimage.label(solid)
        if count:
            sizes = np.bincount(pieces.ravel())[1:]
            if sizes.max() >= SMALLEST_AREA * frame.size:
                out[:] = pieces == 1 + sizes.argmax()
    return largest


def is_present(mask: np.ndarray) -> bool:
    """Return True if an object is visible in enough frames of its mask ``[T, H, W]``."""
    return bool(mask.any(axis=(1, 2)).mean() >= SEEN_FRAMES)


def track_centre(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return times in [0, 1] of the N frames that show an object, and its centres (x, y) in them, ``[N, 2]``."""
    frames, height, width = mask.shape
    seen = np.flatnonzero(mask.any(axis=(1, 2)))
    area = mask[seen].sum(axis=(1, 2))
    x = (mask[seen].sum(axis=1) * (np.arange(width) + 0.5)).sum(-1) / area / width
    y = (mask[seen].sum(axis=2) * (np.arange(height) + 0.5)).sum(-1) / area / height
    return seen / max(frames - 1, 1), np.stack([x, y], axis=-1)


def recognise_shape(mask: np.ndarray) -> str:
    """Return the shape whose outline of the same area and centre overlaps best.

    The overlap is the median over up to nine frames.
    """
    _, height, width = mask.shape
    seen = np.flatnonzero(mask.any(axis=(1, 2)))
    seen = seen[np.linspace(0, len(seen) - 1, min(9, len(seen))).round().astype(int)]
    _, centres = track_centre(mask[seen])
    y = ((np.arange(height) + 0.5) / height)[:, None]
    x = ((np.arange(width) + 0.5) / width)[None]
    overlaps: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for frame, (cx, cy) in zip(mask[seen], centres, strict=True):
        for shape in SHAPES:
            radius = math.sqrt(frame.mean() / UNIT_AREA[shape])
            ideal = signed_distance(shape, x - cx, y - cy, radius) < 0
            overlaps[shape].append((frame & ideal).sum() / (frame | ideal).sum())
    score = {shape: float(np.median(values)) for shape, values in overlaps.items()}
    best = max(score, key=score.__getitem__)
    return best if score[best] >= SHAPE_IOU else NONE


def recognise_motion(mask: np.ndarray) -> str:
    """Return the motion whose path fits best, with fitted offset and phase."""
    time, path = track_centre(mask)
    error = {motion: path_error(motion, time, path) for motion in MOTIONS}
    best = min(error, key=error.__getitem__)
    return best if error[best] < PATH_ERROR else NONE


def path_error(motion: str, time: np.ndarray, path: np.ndarray) -> float:
    """Return the root-mean-square distance of a path ``[N, 2]`` from a motion, with fitted offset and phase."""
    if motion == "moving in a circle":
        centred = (path - path.mean(0)) @ np.array([1, 1j])
        turn = np.exp(2j * math.pi * time)
        turn = turn - turn.mean()
        phase = np.vdot(turn, centred)
        model = ORBIT * turn * (phase / abs(phase) if abs(phase) > 1e-9 else 1.0)
        return float(np.sqrt(np.mean(np.abs(centred - model) ** 2)))
    residual = path - time[:, None] * np.array(DIRECTIONS[motion])
    return float(np.sqrt(((residual - residual.mean(0)) ** 2).sum(-1).mean()))
