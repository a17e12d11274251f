"""Rewards that a head search maximises.

A reward is a function of ``(frames, prompt)`` that returns a float. Frames are float32 ``[T, H, W, 3]`` in [0, 1]. Some
rewards have several such functions, and `dit_accel_eval.heads.objective` combines the means of their scores.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dit_accel.errors import InvalidSettings
from dit_accel_eval.heads.objective import SCORE
from dit_accel_eval.metrics import preference
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


def score_middle(score: Reward, frames: np.ndarray, prompt: str) -> float:
    """Return the score of the middle frame."""
    return score(frames[len(frames) // 2], prompt)


REWARDS: dict[str, Reward] = {
    "caption": caption,
    "caption-words": caption_words,
    "sharpness": sharpness,
    "clip": clip,
}

# Models of the rewards that read weights.
MODELS = {
    "pickscore": (preference.PICKSCORE,),
    "harmonic-pick-clip": (preference.PICKSCORE, preference.CLIP_LARGE),
    "pickscore-thresholding-clip": (
        preference.PICKSCORE,
        preference.CLIP_LARGE,
        preference.AESTHETIC,
    ),
}
# The released search of HeadHunter (3828d1c) gives CLIP this text before the prompt.
CLIP_PREFIX = "A photo depicts "


def load_reward(name: str, weights: str | None = None, device: str = "cpu") -> dict[str, Reward]:
    """Return the functions of a reward by the names of their scores.

    Args:
        name: name of the reward, or ``module:function``.
        weights: folder with the models of the reward; None takes the hub's local cache.
        device: device that the models run on.

    Raises:
        InvalidSettings: as `find_reward`, and if weights are missing.
    """
    if name not in MODELS:
        return {SCORE: find_reward(name)}
    try:
        return _load_preference(name, Path(weights) if weights else None, device)
    except NoBackbone as error:
        raise missing_weights(name, error) from None


def _load_preference(name: str, weights: Path | None, device: str) -> dict[str, Reward]:
    pick = partial(score_middle, preference.load_pickscore(weights, device).score)
    if name == "pickscore":
        return {SCORE: pick}
    model = preference.load_clip_large(weights, device)

    def score_clip(frame: np.ndarray, prompt: str) -> float:
        return model.score(frame, CLIP_PREFIX + prompt)

    parts: dict[str, Reward] = {"pick": pick, "clip": partial(score_middle, score_clip)}
    if preference.AESTHETIC in MODELS[name]:
        parts["aesthetic"] = partial(score_middle, preference.load_aesthetic(model, weights))
    return parts


def missing_weights(reward: str, error: NoBackbone) -> InvalidSettings:
    """Return the error of a reward whose weights are missing."""
    option = ", give the folder of the models with --reward-weights" if reward in MODELS else ""
    return InvalidSettings(
        f"reward {reward}: {error}: download it{option}, or choose another reward"
    )


def find_reward(name: str) -> Reward:
    """Return a reward of one function by its name, or the function that ``module:function`` names.

    Raises:
        InvalidSettings: for an unknown name, or a function that cannot be imported or called.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, colon, function = name.partition(":")
    if not colon:
        known = ", ".join([*REWARDS, *MODELS])
        raise InvalidSettings(f"unknown reward {name!r}: choose from {known}, or module:function")
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


def check_reward(name: str, prompts: tuple[str, ...], weights: str | None = None) -> None:
    """Check that a reward can judge these prompts, before anything is rendered.

    Args:
        name: name of the reward, or ``module:function``.
        prompts: prompts to judge.
        weights: folder with the models of the reward; None takes the hub's local cache.

    Raises:
        InvalidSettings: for an unknown reward, a prompt that is not a caption of the tiny world, missing weights, or a
            folder of weights that the reward does not read.
    """
    if weights is not None and name not in MODELS:
        raise InvalidSettings(
            f"reward {name} reads no weights: leave --reward-weights out, or choose from {', '.join(MODELS)}"
        )
    try:
        find_weights(name, weights)
        if name == "clip":
            load_clip()
    except NoBackbone as error:
        raise missing_weights(name, error) from None
    if name not in MODELS and find_reward(name) in (caption, caption_words):
        for prompt in prompts:
            read_caption(prompt)


def find_weights(reward: str, weights: str | None = None) -> list[Path]:
    """Return the folders of the models that a reward reads.

    Raises:
        NoBackbone: if one is missing.
    """
    folder = Path(weights) if weights else None
    found = [preference.find_weights_file(name, folder) for name in MODELS.get(reward, ())]
    if found:
        preference.find_model(preference.PICKSCORE_PROCESSOR, folder)
    return found


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
