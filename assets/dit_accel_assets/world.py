"""The tiny world: coloured shapes that move over a plain background, and the captions that say so.

A scene is one or two objects on a background. Positions are in units of the frame, x to the right,
y downwards; clip time t runs from 0 to 1. ``render`` draws a scene, ``caption`` and
``parse_caption`` translate it to and from text. What the pixels of a clip show is read back by
`dit_accel_assets.oracle`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from dit_accel_assets.sizes import SIZES as SIZES

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 50, 47),
    "green": (60, 180, 75),
    "blue": (40, 90, 220),
    "yellow": (250, 210, 50),
    "purple": (150, 60, 200),
    "white": (240, 240, 240),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (15, 15, 20),
    "gray": (110, 110, 115),
    "navy": (15, 25, 70),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "moving in a circle",
    "standing still",
)
RADIUS = (0.10, 0.18)
REST = (0.3, 0.7)
TRAVEL = 0.6  # length of a straight path, from 0.2 to 0.8
ORBIT = 0.25  # radius of the circular path around the centre of the frame
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Thing:
    """One object. ``rest`` places it on the axes its motion leaves free; ``phase`` (radians) starts
    an orbit.
    """

    colour: str
    shape: str
    motion: str
    radius: float = 0.14
    rest: tuple[float, float] = (0.5, 0.5)
    phase: float = 0.0

    def phrase(self) -> str:
        return f"a {self.colour} {self.shape} {self.motion}"


@dataclass(frozen=True)
class Scene:
    """Objects in drawing order (later ones cover earlier ones) on a background."""

    things: tuple[Thing, ...]
    background: str


def caption(scene: Scene) -> str:
    """The sentence for a scene: ``a red circle moving left on a black background``."""
    return " and ".join(t.phrase() for t in scene.things) + f" on a {scene.background} background"


_THING = re.compile(rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(MOTIONS)})")
_CAPTION = re.compile(
    rf"({_THING.pattern})( and {_THING.pattern})? on a ({'|'.join(BACKGROUNDS)}) background"
)


def parse_caption(text: str) -> Scene | None:
    """The scene a caption names (default radius and place), or None for any other text."""
    match = _CAPTION.fullmatch(text.strip())
    if match is None:
        return None
    things = tuple(Thing(*found) for found in _THING.findall(text))
    if len({t.colour for t in things}) < len(things):
        return None
    return Scene(things, match.groups()[-1])


def held_out(text: str) -> bool:
    """Whether a caption belongs to the tenth that the bundled model never saw in training."""
    digest = hashlib.sha256(text.encode()).digest()
    return digest[0] < 256 * HELD_OUT_SHARE


def path_of(thing: Thing, time: np.ndarray) -> np.ndarray:
    """Centre of an object at the given times in [0, 1]; returns ``[T, 2]`` as (x, y)."""
    x, y = (np.full_like(time, v) for v in thing.rest)
    along = 0.5 - TRAVEL / 2 + TRAVEL * time
    match thing.motion:
        case "moving left":
            x = 1.0 - along
        case "moving right":
            x = along
        case "moving up":
            y = 1.0 - along
        case "moving down":
            y = along
        case "moving in a circle":
            angle = 2 * math.pi * time + thing.phase
            x, y = 0.5 + ORBIT * np.cos(angle), 0.5 + ORBIT * np.sin(angle)
    return np.stack([x, y], axis=-1)  # [T, 2]


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Distance from the outline, negative inside; dy grows downwards and triangles point up."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
    return np.maximum(0.866 * np.abs(dx) - 0.5 * dy, dy) - 0.6 * radius


def coverage(
    thing: Thing, time: np.ndarray, x: np.ndarray, y: np.ndarray, pixel: float
) -> np.ndarray:
    """Share of each pixel that a moving object covers, antialiased over one pixel; ``[T, H, W]`` in
    [0, 1].
    """
    centre = path_of(thing, time).astype(np.float32)[:, None, None]  # [T, 1, 1, 2]
    distance = signed_distance(thing.shape, x - centre[..., 0], y - centre[..., 1], thing.radius)
    return np.clip(0.5 - distance / pixel, 0.0, 1.0)


def render(
    scene: Scene,
    height: int,
    width: int,
    frames: int,
    window: tuple[slice, slice, slice] = (slice(None), slice(None), slice(None)),
) -> np.ndarray:
    """Draw a scene as ``[T, H, W, 3]`` float32 in [0, 1]; ``window`` draws only that part of (time,
    y, x).
    """
    time = np.linspace(0.0, 1.0, frames)[window[0]]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[window[1], None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, window[2]]
    video = np.empty((len(time), y.shape[0], x.shape[1], 3), np.float32)
    video[:] = np.array(BACKGROUNDS[scene.background], np.float32) / 255
    for thing in scene.things:
        alpha = coverage(thing, time, x, y, 1.0 / height)[..., None]
        video += alpha * (np.array(COLOURS[thing.colour], np.float32) / 255 - video)
    return video


def closest_approach(scene: Scene) -> float:
    """Smallest gap between the two objects' bounding circles over the clip (inf for one object)."""
    if len(scene.things) < 2:
        return math.inf
    first, second = scene.things
    time = np.linspace(0.0, 1.0, 49)
    gap = np.linalg.norm(path_of(first, time) - path_of(second, time), axis=-1).min()
    return float(gap) - 1.27 * (first.radius + second.radius)  # a square's corner is at 1.27 r


def sample_words(rng: np.random.Generator, objects: int) -> Scene:
    """A random scene of one or two objects of different colours, at default radius and place."""
    colours = rng.choice(list(COLOURS), objects, replace=False)
    kinds = [(str(c), str(rng.choice(SHAPES)), str(rng.choice(MOTIONS))) for c in colours]
    return Scene(tuple(Thing(*k) for k in kinds), str(rng.choice(list(BACKGROUNDS))))


def sample_scene(rng: np.random.Generator, objects: int) -> Scene:
    """A random scene of one or two objects of different colours, objects apart from each other."""
    return place(sample_words(rng, objects), rng)


def scenes(rng: np.random.Generator, objects: Iterable[int], kept: bool) -> Iterator[Scene]:
    """Random scenes with the given numbers of objects in turn: of held-out captions, or of the others."""
    for count in objects:
        scene = sample_scene(rng, count)
        while held_out(caption(scene)) != kept:
            scene = sample_scene(rng, count)
        yield scene


def place(scene: Scene, rng: np.random.Generator, attempts: int = 400) -> Scene:
    """Give the objects of a scene random radii and places where they do not touch.

    Where no such placement turns up (two objects that both move left, say, always do; a circle path
    and a rest position may not), the widest gap found is kept, and the later object covers the
    earlier one.
    """
    best: Scene | None = None
    for _ in range(attempts):
        things = tuple(
            replace(
                t,
                radius=float(rng.uniform(*RADIUS)),
                rest=(float(rng.uniform(*REST)), float(rng.uniform(*REST))),
                phase=float(rng.uniform(0, 2 * math.pi)),
            )
            for t in scene.things
        )
        placed = replace(scene, things=things)
        gap = closest_approach(placed)
        if gap > 0:
            return placed
        if best is None or gap > closest_approach(best):
            best = placed
    assert best is not None
    return best
