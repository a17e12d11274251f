"""Rewards of a clip: what a head search maximises. Any callable ``(frames, prompt) -> float`` will do, with
frames float32 ``[T, H, W, 3]`` in [0, 1].
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from dit_accel.errors import InvalidSettings
from dit_accel_assets import oracle
from dit_accel_assets.world import Scene, parse_caption
from dit_accel_eval.metrics.clip_score import clip_score, load_clip
from dit_accel_eval.metrics.clips import NoBackbone

Reward = Callable[[np.ndarray, str], float]


def caption(frames: np.ndarray, prompt: str) -> float:
    """1 if the tiny world's oracle sees exactly what the caption says, else 0."""
    return float(oracle.look(frames).agrees_with(_scene(prompt)))


def caption_words(frames: np.ndarray, prompt: str) -> float:
    """Share of the caption's words (colour, shape and motion of each object, background) that the oracle
    sees; an object too many counts as three words more.
    """
    scene, seen = _scene(prompt), oracle.look(frames)
    wanted = [(t.colour, t.shape, t.motion) for t in scene.things]
    found = [(t.colour, t.shape, t.motion) for t in seen.things]
    padded = found + [("", "", "")] * max(0, len(wanted) - len(found))
    matches = max(
        sum(_alike(one, other) for one, other in zip(wanted, order, strict=True))
        for order in itertools.permutations(padded, len(wanted))
    )
    words = 3 * max(len(wanted), len(found)) + 1
    return (matches + (seen.background == scene.background)) / words


def sharpness(frames: np.ndarray, prompt: str = "") -> float:
    """Mean size of the gradient in space, per pixel and channel."""
    rows, columns = np.gradient(frames, axis=(1, 2))
    return float(np.hypot(rows, columns).mean())


def clip(frames: np.ndarray, prompt: str) -> float:
    """CLIP score of the middle frame."""
    middle = len(frames) // 2
    return clip_score(frames[middle : middle + 1], prompt)


REWARDS: dict[str, Reward] = {
    "caption": caption,
    "caption-words": caption_words,
    "sharpness": sharpness,
    "clip": clip,
}


def find_reward(name: str) -> Reward:
    """A reward by name, or ``module:function``.

    Raises:
        InvalidSettings: if there is none.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise InvalidSettings(
            f"unknown reward {name!r}: choose from {', '.join(REWARDS)}, or module:function"
        )
    try:
        with _here_first():
            found: Reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InvalidSettings(f"cannot find reward {name!r}: {error}") from None
    if not callable(found):
        raise InvalidSettings(f"reward {name!r} is not callable")
    return found


@contextmanager
def _here_first() -> Iterator[None]:
    """Modules of the working folder are found, as with ``python -m``."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def check_reward(name: str, prompts: tuple[str, ...]) -> None:
    """Refuse a reward that cannot judge these prompts, before anything is rendered.

    Raises:
        InvalidSettings: naming the prompt.
    """
    reward = find_reward(name)
    if reward in (caption, caption_words):
        for prompt in prompts:
            _scene(prompt)
    if reward is clip:
        try:
            load_clip()
        except NoBackbone as error:
            raise InvalidSettings(
                f"reward clip: {error}: download it, or choose another reward"
            ) from None


def _alike(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def _scene(prompt: str) -> Scene:
    scene = parse_caption(prompt)
    if scene is None:
        raise InvalidSettings(
            f"reward caption needs captions of the tiny world, such as 'a red circle moving up on a navy "
            f"background'; got {prompt!r}"
        )
    return scene
