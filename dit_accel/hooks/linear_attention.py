"""Processors that hand the output of linear attention to our layers, before the output projection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dit_accel.errors import UnsupportedProcessor
from dit_accel.hooks.layers import DenseCall, Layer

SUPPORTED = ("SanaLinearAttnProcessor2_0",)


class LinearCall(DenseCall):
    """A call of linear attention, whose result is its query already."""

    def __call__(self) -> Tensor:
        """Return the attention ``[B, S, H, D]``."""
        return self.query.clone()


class LinearLayer(Layer):
    """A module of linear attention."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        causal: bool,
        scale: float | None,
    ) -> Tensor:
        """Return the session's attention of ``[B, S, H, D]`` tensors."""
        return self.handler.attend(self, LinearCall(query, key, value, mask, causal, scale, None))


class _BeforeProjection:
    """An attention module as a processor sees it, without the output projection. It keeps the values."""

    def __init__(self, attention: Any) -> None:
        self._attention = attention
        self.to_out = (_identity, _identity)

    def to_v(self, hidden_states: Tensor) -> Tensor:
        value: Tensor = self._attention.to_v(hidden_states)
        self.value = value
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)


class LinearProcessor:
    """A processor of linear attention whose output goes to a layer.

    The layer gets the output in the place of query and key, because there is no map that it could compute.

    Args:
        original: The processor that was there.
        layer: The layer.
    """

    def __init__(self, original: Any, layer: Layer) -> None:
        self.original, self.layer_id = original, torch.tensor(layer.id, device="cpu")

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the original processor, and project what the layer returns."""
        view = _BeforeProjection(attn)
        out = self.original(view, hidden_states, *args, **kwargs)
        out, value = (t.unflatten(-1, (attn.heads, -1)) for t in (out, view.value))
        # [B, S, H, D]
        attended = torch.ops.dit_accel.attend(out, out, value, None, False, None, self.layer_id)
        projected: Tensor = attn.to_out[1](attn.to_out[0](attended.flatten(2)))
        if hidden_states.dtype == torch.float16:  # as the original does
            projected = projected.clip(-65504, 65504)
        return projected

    def __reduce__(self) -> tuple[Any, ...]:
        return (_identity, (self.original,))


def check_linear_processor(processor: Any) -> None:
    """Raise UnsupportedProcessor unless the output of a processor can be handed over."""
    name = type(processor).__name__
    if name not in SUPPORTED:
        raise UnsupportedProcessor(
            f"{name} is not one of the processors of linear attention that can be guided: {', '.join(SUPPORTED)}"
        )


def linear_processor(original: Any, layer: Layer) -> LinearProcessor:
    """Return a processor like ``original`` whose output goes to a layer."""
    processor = LinearProcessor(original, layer)
    layer.processor = processor
    return processor


def _identity(value: Any) -> Any:
    return value
