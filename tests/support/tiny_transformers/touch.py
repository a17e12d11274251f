"""Change one token of inputs in place."""

from __future__ import annotations

from collections.abc import Callable

from support.tiny_transformers.base import Grid, Inputs, Position


def touch_latents(patch: Position = (1, 2, 2)) -> Callable[[Inputs, int, Position], None]:
    """Return a function for latents ``[B, C, F, H, W]`` or ``[B, C, H, W]`` in patches."""

    def touch(inputs: Inputs, sample: int, position: Position) -> None:
        latents = inputs["hidden_states"][sample]
        frame, row, column = (p * size for p, size in zip(position, patch, strict=True))
        if latents.dim() == 4:
            latents[:, frame, row, column] += 1
        else:
            latents[:, row, column] += 1

    return touch


def touch_frames_first(
    inputs: Inputs, sample: int, position: Position, frames_per_token: int = 1
) -> None:
    """Change a token of latents ``[B, F, C, H, W]`` in patches of 2 x 2."""
    frame, row, column = position
    inputs["hidden_states"][sample, frames_per_token * frame, :, 2 * row, 2 * column] += 1


def touch_channels_last(inputs: Inputs, sample: int, position: Position) -> None:
    """Change a token of latents ``[B, F, H, W, C]`` in patches of 2 x 2."""
    frame, row, column = position
    inputs["hidden_states"][sample, frame, 2 * row, 2 * column] += 1


def touch_tokens(grid: Grid) -> Callable[[Inputs, int, Position], None]:
    """Return a function for visual tokens ``[B, S, C]`` in raster order."""

    def touch(inputs: Inputs, sample: int, position: Position) -> None:
        frame, row, column = position
        inputs["hidden_states"][sample, (frame * grid[1] + row) * grid[2] + column] += 1

    return touch


def touch_text(inputs: Inputs, sample: int, token: int) -> None:
    """Change a token of text ``[B, T, C]``."""
    inputs["encoder_hidden_states"][sample, token] += 1


def touch_arguments(*names: str) -> Callable[[Inputs, int, int], None]:
    """Return a function for tokens of several arguments ``[B, T, C]``, one after the other."""

    def touch(inputs: Inputs, sample: int, token: int) -> None:
        for name in names:
            count = inputs[name].shape[1]
            if token < count:
                inputs[name][sample, token] += 1
                return
            token -= count

    return touch
