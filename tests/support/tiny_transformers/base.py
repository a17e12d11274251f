"""Build and call a tiny random transformer of a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Any]
Grid = tuple[int, int, int]
Position = tuple[int, int, int]


@dataclass(frozen=True)
class TinyTransformer:
    """Row of the family matrix.

    Attributes:
        family: Name of the family.
        build: Function that returns a transformer with random weights, none of them zero (`ready`).
        inputs: Function that returns arguments of a forward for two different samples; equal at each call.
        touch: Function that changes the latents of one visual token in place: ``touch(inputs, sample, position)``
            with the position (frame, row, column) in the grid.
        grid: Frames, rows and columns of visual tokens.
        layers: Number of self-attention calls in a forward.
        text: Number of valid text tokens of each sample in self-attention; ``()`` without text.
        touch_text: Function that changes one text token in place: ``touch_text(inputs, sample, token)``.
    """

    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    touch: Callable[[Inputs, int, Position], None]
    grid: Grid
    layers: int
    text: tuple[int, ...] = ()
    touch_text: Callable[[Inputs, int, int], None] | None = None

    def run(self, transformer: nn.Module, inputs: Inputs | None = None) -> Tensor:
        """Return the prediction of all samples."""
        with torch.no_grad():
            out = transformer(**(inputs or self.inputs()), return_dict=False)[0]
        return torch.stack(list(out)) if isinstance(out, list | tuple) else out


class WithParameters(TinyTransformer):
    """Row whose inputs also hold parameters of the transformer, for tokens that come from no argument."""

    def run(self, transformer: nn.Module, inputs: Inputs | None = None) -> Tensor:
        parameters = dict(transformer.named_parameters())
        arguments = dict(inputs or self.inputs())
        for name in parameters.keys() & arguments.keys():
            parameters[name].data = arguments.pop(name)
        return super().run(transformer, arguments)


def ready(transformer: nn.Module) -> nn.Module:
    """Return a transformer in evaluation mode, with small random values in parameters that are all zero."""
    transformer.eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return transformer


def absent() -> nn.Module:
    """Fail, because the installed diffusers lacks the transformer."""
    raise NotImplementedError


def build(
    transformer_class: Callable[..., nn.Module] | None, **config: object
) -> Callable[[], nn.Module]:
    """Return a function that builds a transformer with the same random weights at each call.

    Without a class, return `absent`.
    """
    if transformer_class is None:
        return absent

    def build_ready() -> nn.Module:
        torch.manual_seed(0)
        return ready(transformer_class(**config))

    return build_ready


def scale_parameters(transformer: nn.Module, names: str, factor: float) -> nn.Module:
    """Multiply the parameters whose names contain a string."""
    for name, parameter in transformer.named_parameters():
        if names in name:
            parameter.data *= factor
    return transformer
