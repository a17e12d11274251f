"""What rows of several families are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from support.tiny_transformers.base import BATCH, TEXT, Inputs, TinyTransformer, noise, ready
from torch import Tensor, nn

ONE = (1, 6, 8)

TWO = (2, 6, 8)  # an image and a reference

WORDS = TEXT[0]

UNPADDED = (WORDS, WORDS)

HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}

TIMESTEP = (500.0, 400.0)
AXES = (4, 6, 6)  # channels of a head for RoPE's axes

CallContext = tuple[int, int, int]


class WithParameters(TinyTransformer):
    """A row whose inputs also hold parameters of the transformer: tokens that no argument brings."""

    def run(self, transformer: nn.Module, inputs: Inputs | None = None) -> Tensor:
        parameters = dict(transformer.named_parameters())
        arguments = dict(inputs or self.inputs())
        for name in parameters.keys() & arguments.keys():
            parameters[name].data = arguments.pop(name)
        return super().run(transformer, arguments)


def absent() -> nn.Module:
    """Stands for a transformer that the installed diffusers does not have."""
    raise NotImplementedError


def build(make: Callable[..., nn.Module] | None, **config: object) -> Callable[[], nn.Module]:
    """A transformer with random weights, always the same; `absent` without a class."""
    if make is None:
        return absent

    def built() -> nn.Module:
        torch.manual_seed(0)
        return ready(make(**config))

    return built


def latents() -> Inputs:
    """Latents ``[B, C, H, W]`` of a picture, timestep, and text."""
    return {
        "hidden_states": noise(BATCH, 4, 2 * ONE[1], 2 * ONE[2]),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
    }


def tokens(grid: CallContext) -> Inputs:
    """Visual tokens ``[B, S, C]``, timestep, and text."""
    return {
        "hidden_states": noise(BATCH, grid[0] * grid[1] * grid[2], 16),
        "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
    }


def ids(grid: CallContext) -> Tensor:
    """Image, row and column of each token ``[S, 3]``."""
    return torch.cartesian_prod(*(torch.arange(size) for size in grid))


def touch_first(*names: str) -> Callable[[Inputs, int, int], None]:
    """For tokens of several arguments ``[B, T, C]``, one after the other."""

    def touch(inputs: Inputs, sample: int, token: int) -> None:
        for name in names:
            count = inputs[name].shape[1]
            if token < count:
                inputs[name][sample, token] += 1
                return
            token -= count

    return touch


def video(channels: int = 4) -> Inputs:
    """Latents ``[B, C, F, H, W]``, timestep, and text."""
    return {
        "hidden_states": noise(BATCH, channels, 3, 8, 12),
        "timestep": torch.tensor(TIMESTEP),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
    }


def frames_first(inputs: Inputs) -> Inputs:
    """Latents ``[B, F, C, H, W]``."""
    return {**inputs, "hidden_states": inputs["hidden_states"].transpose(1, 2).contiguous()}


def touch_frames_first(inputs: Inputs, sample: int, place: CallContext) -> None:
    """For latents ``[B, F, C, H, W]`` in patches of 2 x 2."""
    frame, row, column = place
    inputs["hidden_states"][sample, frame, :, 2 * row, 2 * column] += 1
