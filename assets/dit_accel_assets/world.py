"""Draw the tiny world: coloured shapes that move over a plain background, with captions.

A scene has one or two objects on a background. Positions are in units of the frame: x points right and y
points down. Time runs from 0 to 1 over a clip. `render` draws a scene. `caption` and `parse_caption` translate
it to text and back. `dit_accel_assets.oracle` recognises a scene from the pixels of a clip.

numpy is imported inside functions, because the command line needs only the names and sizes here.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
"""Smallest and largest radius of an object."""

REST = (0.3, 0.7)
"""Smallest and largest coordinate on an axis along which an object does not move."""

TRAVEL = 0.6
"""Length of a straight path, from 0.2 to 0.8."""

ORBIT = 0.25
"""Radius of the circular path around the centre of the frame."""

HELD_OUT_SHARE = 0.1
"""Share of captions that are left out of training."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        colour, shape, motion: Words of the caption.
        radius: Size in units of the frame.
        rest: Position (x, y) on the axes along which the object does not move.
        phase: Angle at which a circular path starts, in radians.
    """

    colour: str
    shape: str
    motion: str
    radius: float = 0.14
    rest: tuple[float, float] = (0.5, 0.5)
    phase: float = 0.0

    def phrase(self) -> str:
        """Return the object's part of the caption."""
        return f"a {self.colour} {self.shape} {self.motion}"


@dataclass(frozen=True)
class Scene:
    """Objects on a background.

    Attributes:
        things: Objects in drawing order: later ones cover earlier ones.
        background: Name of the background's colour.
    """

    things: tuple[Thing, ...]
    background: str


def caption(scene: Scene) -> str:
    """Return the caption of a scene, for example ``a red circle moving left on a black background``."""
    return " and ".join(t.phrase() for t in scene.things) + f" on a {scene.background} background"


_THING = re.compile(rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(MOTIONS)})")
_CAPTION = re.compile(
    rf"({_THING.pattern})( and {_THING.pattern})? on a ({'|'.join(BACKGROUNDS)}) background"
)


def parse_caption(text: str) -> Scene | None:
    """Return the scene of a caption, with default radii and positions; None for any other text."""
    match = _CAPTION.fullmatch(text.strip())
    if match is None:
        return None
    things = tuple(Thing(*words) for words in _THING.findall(text))
    if len({t.colour for t in things}) < len(things):
        return None
    return Scene(things, match.groups()[-1])


def is_held_out(text: str) -> bool:
    """Return True if a caption belongs to the tenth that is left out of training."""
    digest = hashlib.sha256(text.encode()).digest()
    return digest[0] < 256 * HELD_OUT_SHARE


def trace_path(thing: Thing, time: np.ndarray) -> np.ndarray:
    """Return the centre (x, y) of an object at times in [0, 1], ``[T, 2]``."""
    import numpy as np

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
    """Return the distance from a shape's outline, which is negative inside.

    Args:
        shape: One of `SHAPES`; triangles point up.
        dx, dy: Offsets from the centre, of shapes that broadcast; dy grows downwards.
        radius: Size of the shape.
    """
    import numpy as np

    distance: np.ndarray
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
    else:
        distance = np.maximum(0.866 * np.abs(dx) - 0.5 * dy, dy) - 0.6 * radius
    return distance


def coverage(
    thing: Thing, time: np.ndarray, x: np.ndarray, y: np.ndarray, pixel: float
) -> np.ndarray:
    """Return the share of each pixel that a moving object covers, ``[T, H, W]`` in [0, 1].

    Args:
        thing: The object.
        time: Times of the frames, ``[T]`` in [0, 1].
        x: Positions of the columns, ``[1, W]``.
        y: Positions of the rows, ``[H, 1]``.
        pixel: Side of a pixel, over which edges are smoothed.
    """
    import numpy as np

    centre = trace_path(thing, time).astype(np.float32)[:, None, None]  # [T, 1, 1, 2]
    distance = signed_distance(thing.shape, x - centre[..., 0], y - centre[..., 1], thing.radius)
    return np.clip(0.5 - distance / pixel, 0.0, 1.0)


def render(
    scene: Scene,
    height: int,
    width: int,
    frames: int,
    window: tuple[slice, slice, slice] = (slice(None), slice(None), slice(None)),
) -> np.ndarray:
    """Draw a scene as ``[T, H, W, 3]`` float32 in [0, 1].

    Args:
        scene: The scene.
        height, width, frames: Size of the whole clip.
        window: Part of (time, y, x) to draw.
    """
    import numpy as np

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
    """Return the smallest gap between the bounding circles of two objects; infinity for one object."""
    import numpy as np

    if len(scene.things) < 2:
        return math.inf
    first, second = scene.things
    time = np.linspace(0.0, 1.0, 49)
    gap = np.linalg.norm(trace_path(first, time) - trace_path(second, time), axis=-1).min()
    # The corner of a square is 1.27 radii from its centre.
    return float(gap) - 1.27 * (first.radius + second.radius)


def sample_words(rng: np.random.Generator, objects: int) -> Scene:
    """Return a random scene of one or two objects of different colours, with default radii and positions."""
    colours = rng.choice(list(COLOURS), objects, replace=False)
    kinds = [(str(c), str(rng.choice(SHAPES)), str(rng.choice(MOTIONS))) for c in colours]
    return Scene(tuple(Thing(*k) for k in kinds), str(rng.choice(list(BACKGROUNDS))))


def sample_scene(rng: np.random.Generator, objects: int) -> Scene:
    """Return a random scene of one or two objects of different colours that do not touch, if possible."""
    return place_objects(sample_words(rng, objects), rng)


def sample_scenes(
    rng: np.random.Generator, objects: Iterable[int], *, held_out: bool
) -> Iterator[Scene]:
    """Yield a random scene for each number of objects, with held-out captions only or with others only."""
    for count in objects:
        scene = sample_scene(rng, count)
        while is_held_out(caption(scene)) != held_out:
            scene = sample_scene(rng, count)
        yield scene


def place_objects(scene: Scene, rng: np.random.Generator, attempts: int = 400) -> Scene:
    """Return the scene with random radii and positions at which its objects do not touch.

    Some motions have no such positions. Then the widest gap of all attempts is used, and the later object covers
    the earlier one.
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
