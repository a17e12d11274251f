"""Settings that are not a method's own: when to be sparse."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Which attention calls stay dense, whatever the method.

    Attributes:
        dense_steps: share of the denoising steps, counted from the first and rounded up, that run
            dense (SVG2 runs 20 to 30 % of them so: the layout of the video is decided there).
        dense_layers: indices of layers that always run dense; negative ones count from the last.
        min_tokens: below this many tokens a call runs dense, because sparse attention cannot pay
            there; None takes the crossover measured for the device.
    """

    dense_steps: float = 0.2
    dense_layers: tuple[int, ...] = ()
    min_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.dense_steps <= 1.0:
            raise ValueError(f"dense_steps must be in [0, 1], got {self.dense_steps}")
        if self.min_tokens is not None and self.min_tokens < 0:
            raise ValueError(f"min_tokens must be 0 or more, got {self.min_tokens}")

    def step_is_dense(self, step: int, num_steps: int | None) -> bool:
        """Whether a step (counted from 0) is among the dense ones; with an unknown number of steps
        none is.
        """
        if num_steps is None:
            return False
        return step < math.ceil(self.dense_steps * num_steps - 1e-9)

    def layer_is_dense(self, layer: int, num_layers: int) -> bool:
        return layer in self.dense_layers or layer - num_layers in self.dense_layers


CROSSOVER_TOKENS = {"cpu": 2048}  # measured; a device without an entry has no crossover


def crossover_tokens(device_type: str) -> int:
    """Number of tokens below which sparse attention does not pay on a kind of device."""
    return CROSSOVER_TOKENS.get(device_type, 0)
