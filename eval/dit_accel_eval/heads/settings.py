"""Settings of a head search."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from dit_accel.errors import InvalidSettings

Pair = tuple[str, int]
"""Prompt and seed of a clip."""


@dataclass(frozen=True)
class SearchSettings:
    """Everything that decides the outcome of a head search, except the model and its sizes.

    Attributes:
        prompts: Prompts; every candidate is sampled with each prompt and seed, from the same noise.
        seeds: Seeds.
        reward: Name of a reward, or ``module:function``. Higher is better.
        rounds: Number of greedy rounds.
        top_k: Heads that each round adds to the set.
        scale: Guidance scale during the search.
        softness: Share of the perturbed attention during the search, in [0, 1].
        batch: Clips sampled at a time.

    Raises:
        InvalidSettings: for a number below 1, or prompts or seeds that are missing or repeated.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    reward: str = "caption"
    rounds: int = 1
    top_k: int = 3
    scale: float = 3.0
    softness: float = 1.0
    batch: int = 10

    def __post_init__(self) -> None:
        for name in ("rounds", "top_k", "batch"):
            if getattr(self, name) < 1:
                raise InvalidSettings(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("prompts", "seeds"):
            values = getattr(self, name)
            if not values:
                raise InvalidSettings(f"no {name}: give at least one")
            if len(set(values)) < len(values):
                repeated = next(value for value in values if values.count(value) > 1)
                raise InvalidSettings(f"{name} must be different, got {repeated!r} twice")

    @property
    def pairs(self) -> list[Pair]:
        """Every prompt with every seed."""
        return list(product(self.prompts, self.seeds))

    @property
    def size(self) -> int:
        """Number of heads that a complete search chooses."""
        return self.rounds * self.top_k
