"""Settings of a head search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

from dit_accel.errors import InvalidSettings
from dit_accel.guidance.config import Interpolation, Perturbation, PerturbedGuidance, TextMode
from dit_accel.io.parsing import parse_dataclass

Pair = tuple[str, int]
"""Prompt and seed of a clip."""

Pairing = Literal["product", "zip"]
"""Which prompts go with which seeds. "product" takes every prompt with every seed, "zip" the first with the first."""

Values = tuple[str, ...] | tuple[int, ...] | list[Pair]


@dataclass(frozen=True)
class SearchSettings:
    """Everything that decides the outcome of a head search, except the model and its sizes.

    Attributes:
        prompts: Prompts; every candidate is sampled with the same prompts and seeds, from the same noise.
        seeds: Seeds.
        reward: Name of a reward, or ``module:function``. Higher is better.
        rounds: Number of greedy rounds.
        top_k: Heads that each round adds to the set.
        scale: Guidance scale during the search.
        softness: Share of the perturbed attention during the search, in [0, 1].
        batch: Clips sampled at a time.
        pairing: ``"product"`` takes every prompt with every seed. ``"zip"`` takes the first prompt with the first
            seed, the second with the second, and so on.
        perturbation: Perturbation of `PerturbedGuidance` during the search.
        text_mode: Text mode of `PerturbedGuidance` during the search.
        interval: Interval of `PerturbedGuidance` during the search.
        sigma: Blur of `PerturbedGuidance` during the search.
        interpolation: Interpolation of `PerturbedGuidance` during the search.
        reward_weights: Folder with the models of the reward. None takes the hub's local cache.

    Raises:
        InvalidSettings: for a number below 1, for prompts or seeds that are missing, repeated or not of one number, or
            for guidance that perturbs nothing.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    reward: str = "caption"
    rounds: int = 1
    top_k: int = 3
    scale: float = 3.0
    softness: float = 1.0
    batch: int = 10
    pairing: Pairing = "product"
    perturbation: Perturbation = "identity"
    text_mode: TextMode = "visual"
    interval: tuple[float, float] = (0.0, 1.0)
    sigma: float | None = None
    interpolation: Interpolation = "linear"
    reward_weights: str | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "top_k", "batch"):
            if getattr(self, name) < 1:
                raise InvalidSettings(f"{name} must be at least 1, got {getattr(self, name)}")
        check_pairs(self.prompts, self.seeds, self.pairing)
        self.make_guidance()
        for name in ("scale", "softness"):
            if getattr(self, name) == 0:
                raise InvalidSettings(
                    f"a search with a {name} of 0 perturbs nothing: give --{name} above 0"
                )

    @property
    def pairs(self) -> list[Pair]:
        """Return the prompts with their seeds."""
        return make_pairs(self.prompts, self.seeds, self.pairing)

    @property
    def size(self) -> int:
        """Return the largest number of heads that a complete search chooses."""
        return self.rounds * self.top_k

    @property
    def perturbed_attention(self) -> dict[str, Any]:
        """Return the arguments of ``enable_perturbed_guidance`` that all candidates share."""
        names = ("perturbation", "text_mode", "interval", "sigma", "interpolation")
        return {name: getattr(self, name) for name in names}

    def make_guidance(self) -> PerturbedGuidance:
        """Return the guidance of the search.

        Raises:
            InvalidSettings: for a value out of range.
        """
        strength = {"scale": self.scale, "softness": self.softness}
        values = {**strength, **self.perturbed_attention}
        guidance: PerturbedGuidance = parse_dataclass(PerturbedGuidance, values, "guidance")
        return guidance


def make_pairs(prompts: Sequence[str], seeds: Sequence[int], pairing: Pairing) -> list[Pair]:
    """Return prompts with their seeds.

    Raises:
        InvalidSettings: if prompts and seeds are to be paired one to one, and are not as many.
    """
    if pairing == "product":
        return list(product(prompts, seeds))
    if len(prompts) != len(seeds):
        raise InvalidSettings(
            f"pairing zip takes one seed for each prompt, got {len(prompts)} prompts and {len(seeds)} seeds"
        )
    return list(zip(prompts, seeds, strict=True))


def check_pairs(prompts: tuple[str, ...], seeds: tuple[int, ...], pairing: Pairing) -> None:
    """Check that there are prompts and seeds, and that no clip would be sampled twice.

    Raises:
        InvalidSettings: naming what is missing or repeated.
    """
    if pairing not in get_args(Pairing):
        raise InvalidSettings(f"pairing must be product or zip, got {pairing!r}")
    for name, values in (("prompts", prompts), ("seeds", seeds)):
        if not values:
            raise InvalidSettings(f"no {name}: give at least one")
    if pairing == "zip":
        _check_different("pairs of prompt and seed", make_pairs(prompts, seeds, pairing))
    else:
        _check_different("prompts", prompts)
        _check_different("seeds", seeds)


def _check_different(name: str, values: Values) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise InvalidSettings(f"{name} must be different, got {value!r} twice")
        seen.add(value)
