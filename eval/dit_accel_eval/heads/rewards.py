"""Rewards that a head search maximises.

A reward is a function of ``(frames, prompt)`` that returns a float. Frames are float32 ``[T, H, W, 3]`` in [0, 1].
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from dit_accel.errors import InvalidSettings
from dit_accel_eval.metrics.clip_pairs import NoBackbone
from dit_accel_eval.metrics.clip_score import clip_score, load_clip

if TYPE_CHECKING:
    import numpy as np

    from dit_accel_assets.world import Scene

Reward: TypeAlias = "Callable[[np.ndarray, str], float]"


def caption(frames: np.ndarray, prompt: str) -> float:
    """Return 1 if the tiny world's oracle sees exactly the caption, else 0."""
    from dit_accel_assets import oracle

    return float(oracle.look(frames).agrees_with(read_caption(prompt)))


def caption_words(frames: np.ndarray, prompt: str) -> float:
    """Return the share of the caption's words that the oracle sees.

    The words are colour, shape and motion of each object, and the background. A surplus object counts as three wrong
    words.
    """
    from dit_accel_assets import oracle

    scene, seen = read_caption(prompt), oracle.look(frames)
    expected = [(t.colour, t.shape, t.motion) for t in scene.things]
    actual = [(t.colour, t.shape, t.motion) for t in seen.things]
    padded = actual + [("", "", "")] * max(0, len(expected) - len(actual))
    matches = max(
        sum(count_equal(a, b) for a, b in zip(expected, order, strict=True))
        for order in itertools.permutations(padded, len(expected))
    )
    words = 3 * max(len(expected), len(actual)) + 1
    return (matches + (seen.background == scene.background)) / words


def sharpness(frames: np.ndarray, prompt: str = "") -> float:
    """Return the mean length of the spatial gradient, per pixel and channel."""
    import numpy as np

    rows, columns = np.gradient(frames, axis=(1, 2))
    return float(np.hypot(rows, columns).mean())


def clip(frames: np.ndarray, prompt: str) -> float:
    """Return the CLIP score of the middle frame."""
    middle = len(frames) // 2
    return clip_score(frames[middle : middle + 1], prompt)


REWARDS: dict[str, Reward] = {
    "caption": caption,
    "caption-words": caption_words,
    "sharpness": sharpness,
    "clip": clip,
}


def find_reward(name: str) -> Reward:
    """Return a reward by its name, or the function that ``module:function`` names.

    Raises:
        InvalidSettings: for an unknown name, or a function that cannot be imported or called.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise InvalidSettings(
            f"unknown reward {name!r}: choose from {', '.join(REWARDS)}, or module:function"
        )
    try:
        with working_folder_on_path():
            reward: Reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InvalidSettings(f"cannot import reward {name!r}: {error}") from None
    if not callable(reward):
        raise InvalidSettings(f"reward {name!r} is not callable: give a function")
    return reward


@contextmanager
def working_folder_on_path() -> Iterator[None]:
    """Make modules of the working folder importable, as ``python -m`` does."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def check_reward(name: str, prompts: tuple[str, ...]) -> None:
    """Check that a reward can judge these prompts, before anything is rendered.

    Raises:
        InvalidSettings: for an unknown reward, a prompt that is not a caption of the tiny world, or missing weights.
    """
    reward = find_reward(name)
    if reward in (caption, caption_words):
        for prompt in prompts:
            read_caption(prompt)
    if reward is clip:
        try:
            load_clip()
        except NoBackbone as error:
            raise InvalidSettings(
                f"reward clip: {error}: download it, or choose another reward"
            ) from None


def count_equal(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Return the number of places where two tuples are equal."""
    return sum(a == b for a, b in zip(first, second, strict=True))


def read_caption(prompt: str) -> Scene:
    """Return the scene that a caption of the tiny world describes.

    Raises:
        InvalidSettings: for another prompt.
    """
    from dit_accel_assets.world import parse_caption

    scene = parse_caption(prompt)
    if scene is None:
        raise InvalidSettings(
            f"reward caption needs captions of the tiny world, such as 'a red circle moving up on a navy "
            f"background', got {prompt!r}"
        )
    return scene
