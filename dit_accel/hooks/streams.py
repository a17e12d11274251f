"""Tell forwards of one step apart that have the same name, and recognize each of them in the next step."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SAMPLED_VALUES = 4096
# Correlation between a sample's latents in consecutive steps. Two other samples have about 0, and a model of two steps
# still has about 0.7.
LEAST_CORRELATION = 0.3
# Correlation above which latents are equal.
EQUAL = 1 - 1e-4
# Forwards of one name whose state is kept before a second step shows that they are windows of one sample.
KEPT_IN_FIRST_STEP = 2


@dataclass(eq=False)
class _Stream:
    """A sequence of forwards, one a step, that denoise the same latents.

    Attributes:
        key: Identifier, which starts with the name.
        values: Some of the latents of the latest forward, or None if they are unknown.
        step: Step of the latest forward.
    """

    key: tuple[str, int]
    values: Tensor | None
    step: int


class StreamTracker:
    """Finds the stream that a forward continues.

    Most runs have one forward of a name in a step. A loop of the user's own can have several: windows of one long
    video, or the clips of a model of one step. A forward then continues the stream whose latents correlate most with
    its own. It begins a new stream if none does, so that two samples never share a state.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all streams."""
        self._streams: list[_Stream] = []
        self._ended: list[Hashable] = []
        self._numbers = itertools.count()

    def take_ended(self) -> list[Hashable]:
        """Return the identifiers of the streams that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def find(self, name: str, step: int, latents: Tensor | None, *, bounded: bool) -> Hashable:
        """Return the identifier of the stream that a forward continues or begins.

        Args:
            name: Name of the forward.
            step: Its step in the run.
            latents: The latents that it denoises, or None if they are unknown.
            bounded: True if nothing tells whether the run has a second step. Only the latest streams of the first step
                are kept then.
        """
        values = _sample(latents)
        named = [stream for stream in self._streams if stream.key[0] == name]
        stream = _continued(named, step, values)
        if stream is None:
            stream = _Stream((name, next(self._numbers)), values, step)
            self._streams.append(stream)
            named.append(stream)
        stream.values, stream.step = values, step
        self._forget(_ended(named, step) if len(named) > 1 else [])
        if bounded and step == 0:
            self._forget(named[:-KEPT_IN_FIRST_STEP])
        return stream.key

    def _forget(self, streams: Iterable[_Stream]) -> None:
        for stream in streams:
            if stream in self._streams:
                self._streams.remove(stream)
                self._ended.append(stream.key)


def find_latents(arguments: Mapping[str, Any]) -> Tensor | None:
    """Return the latents among the arguments of a forward, or None. Lists give their first tensor."""
    for name in ("hidden_states", "x", "latents"):
        value = arguments.get(name)
        value = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, Tensor):
            return value
    return None


def _sample(latents: Tensor | None) -> Tensor | None:
    """Return evenly spaced values of the latents, centered and of norm 1."""
    if latents is None or latents.is_meta or not latents.is_floating_point():
        return None
    flat = latents.detach().flatten()
    values = flat[:: max(1, len(flat) // SAMPLED_VALUES)].float()
    centered: Tensor = values - values.mean()
    return torch.nn.functional.normalize(centered, dim=0)


def _continued(named: list[_Stream], step: int, values: Tensor | None) -> _Stream | None:
    """Return the stream that a forward with these values continues, or None if it begins one.

    Args:
        named: Streams of the forward's name.
        step: Step of the forward.
        values: Some of its latents, or None if they are unknown.
    """
    streams = [stream for stream in named if _have_same_shape(stream.values, values)]
    candidates = [stream for stream in streams if stream.step != step]
    if values is None or len(streams) < 2 or not candidates:
        return candidates[0] if candidates else None
    stacked = torch.stack([s.values for s in streams if s.values is not None])  # [N, values]
    both: list[list[float]] = (stacked @ torch.stack([stacked[0], values], 1)).tolist()
    if min(with_first for with_first, _ in both) > EQUAL:  # the branches of one sample
        return candidates[0]
    similar = {stream: value for stream, (_, value) in zip(streams, both, strict=True)}
    begun = any(value > EQUAL for stream, value in similar.items() if stream.step == step)
    if begun and len(candidates) == 1:  # the last branch of a sample that this step has begun
        return candidates[0]
    best = max(similar[stream] for stream in candidates)
    if not best >= LEAST_CORRELATION:  # also if it is not finite
        return None
    return next(stream for stream in candidates if similar[stream] > best + EQUAL - 1)


def _have_same_shape(first: Tensor | None, second: Tensor | None) -> bool:
    return (None if first is None else first.shape) == (None if second is None else second.shape)


def _ended(streams: Iterable[_Stream], step: int) -> list[_Stream]:
    """Return the streams that the step before did not continue."""
    return [stream for stream in streams if stream.step < step - 1]
