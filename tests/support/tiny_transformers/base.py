"""What a tiny random transformer of a family is: how it is built and called, and where its tokens are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

GRID = (3, 4, 6)
BATCH = 2
TEXT = (
    7,
    5,
)  # valid text tokens of the two samples, where text is padded; the first has no padding

Inputs = dict[str, Any]


@dataclass(frozen=True)
class TinyTransformer:
    """A row of the family matrix.

    Attributes:
        family: its name.
        build: a transformer with random weights of which none is zero (`ready`).
        inputs: arguments of a forward of `BATCH` different samples, made anew and equal at each call.
        touch: changes the latents of one token of one sample, in place: ``touch(inputs, sample, place)`` with
            the place (frame, row, column) in the grid.
        grid: (frames, rows, columns) of visual tokens.
        text: text tokens that count, of each sample, in self-attention; ``()`` where there is none.
        touch_text: changes a text token of a sample, in place, where there is text.
        layers: self-attention calls of a forward.
    """

    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    touch: Callable[[Inputs, int, tuple[int, int, int]], None]
    grid: tuple[int, int, int]
    layers: int
    text: tuple[int, ...] = ()
    touch_text: Callable[[Inputs, int, int], None] | None = None

    def run(self, transformer: nn.Module, inputs: Inputs | None = None) -> Tensor:
        """The prediction of all samples."""
        with torch.no_grad():
            out = transformer(**(inputs or self.inputs()), return_dict=False)[0]
        return torch.stack(list(out)) if isinstance(out, list | tuple) else out


def ready(transformer: nn.Module) -> nn.Module:
    """In evaluation mode; parameters that start as zeros get small random values."""
    transformer.eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return transformer


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padding(tokens: int = TEXT[0], valid: tuple[int, ...] = TEXT) -> Tensor:
    """A mask ``[B, T]``, True for the tokens that count, padding last."""
    return torch.arange(tokens) < torch.tensor(valid)[:, None]


def touch_latents(
    patch: tuple[int, int, int],
) -> Callable[[Inputs, int, tuple[int, int, int]], None]:
    """For latents ``[B, C, F, H, W]`` or ``[B, C, H, W]`` in patches."""

    def touch(inputs: Inputs, sample: int, place: tuple[int, int, int]) -> None:
        latents = inputs["hidden_states"][sample]
        frame, row, column = (p * size for p, size in zip(place, patch, strict=True))
        if latents.dim() == 4:
            latents[:, frame, row, column] += 1
        else:
            latents[:, row, column] += 1

    return touch


def touch_tokens(grid: tuple[int, int, int]) -> Callable[[Inputs, int, tuple[int, int, int]], None]:
    """For tokens ``[B, S, C]`` in raster order."""

    def touch(inputs: Inputs, sample: int, place: tuple[int, int, int]) -> None:
        frame, row, column = place
        inputs["hidden_states"][sample, (frame * grid[1] + row) * grid[2] + column] += 1

    return touch


def touch_words(inputs: Inputs, sample: int, token: int) -> None:
    """For text ``[B, T, C]``."""
    inputs["encoder_hidden_states"][sample, token] += 1
