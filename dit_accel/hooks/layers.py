"""One attention module as we know it, and the custom op that leads to it."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.hooks.hooks import CacheContext
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn
from torch.nn import functional

_LAYERS: weakref.WeakValueDictionary[int, Layer] = weakref.WeakValueDictionary()
_NEXT_ID = itertools.count()

RerunForward = Callable[[Mapping[str, Any]], Any]
"""Runs the transformer's forward once more, with some of its arguments replaced."""


@dataclass(frozen=True)
class DenseCall:
    """A call as diffusers would have made it; tensors are ``[B, S, H, D]``. ``direct`` calls go to
    PyTorch's scaled_dot_product_attention, as the processor does, all others to the user's own backend.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    causal: bool
    scale: float | None
    backend: Any
    direct: bool = False

    def __call__(self) -> Tensor:
        if self.direct:
            query, key, value = (t.transpose(1, 2) for t in (self.query, self.key, self.value))
            return functional.scaled_dot_product_attention(
                *(query, key, value),
                attn_mask=self.mask,
                is_causal=self.causal,
                scale=self.scale,
            ).transpose(1, 2)
        out: Tensor = dispatch_attention_fn(
            *(self.query, self.key, self.value),
            attn_mask=self.mask,
            is_causal=self.causal,
            scale=self.scale,
            backend=self.backend,
        )
        return out


class ForwardHandler(Protocol):
    """What the seam asks of a session."""

    def attend(self, layer: Layer, dense: DenseCall) -> Tensor: ...

    def fall_back(self, reason: str, dense: DenseCall) -> Tensor: ...

    def begin_forward(
        self,
        stack: str,
        arguments: Mapping[str, Any],
        config: Mapping[str, Any],
        context: CacheContext | None,
    ) -> None: ...

    def may_run_again(self) -> bool: ...

    def wants_dense_rerun(self) -> bool: ...

    def guide(
        self, module: nn.Module, arguments: Mapping[str, Any], output: Any, again: RerunForward
    ) -> Any: ...

    def recording(self, module: nn.Module) -> AbstractContextManager[None]: ...

    def end_forward(self) -> None: ...

    def end_run(self) -> None: ...


class Layer:
    """One attention module: its place, its processor, and the memory the session keeps for it."""

    def __init__(
        self, owner: ForwardHandler, stack: str, name: str, index: int, count: int
    ) -> None:
        self.owner = owner
        self.stack, self.name, self.index, self.count = stack, name, index, count
        self.states: dict[Any, Any] = {}
        self.processor: Any = None
        self.direct = False
        self.id = next(_NEXT_ID)
        _LAYERS[self.id] = self

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float | None,
    ) -> Tensor:
        """Attention of ``[B, S, H, D]`` tensors, the session's way."""
        return self.owner.attend(self, self.dense(query, key, value, mask, causal, scale))

    def dense(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        causal: bool,
        scale: float | None,
    ) -> DenseCall:
        """A call as diffusers would have made it."""
        backend = getattr(self.processor, "_attention_backend", None) if not self.direct else None
        return DenseCall(query, key, value, mask, causal, scale, backend, self.direct)


def _layer(number: Tensor) -> Layer:
    found = _LAYERS.get(int(number))
    if found is None:
        raise RuntimeError(
            "this attention layer was uninstalled: compiled code outlived its pipeline's session"
        )
    return found


def attend_dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    causal: bool,
    scale: float | None,
    layer: Tensor,
) -> Tensor:
    """A call that no custom op can take, because its mask is no tensor: FlexAttention's BlockMask, for instance."""
    found = _layer(layer)
    dense = found.dense(query, key, value, mask, causal, scale)
    return found.owner.fall_back("attention mask", dense)


# It decides, keeps state and measures: a CUDA graph must not freeze it.
@torch.library.custom_op("dit_accel::attend", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    layer: Tensor,
) -> Tensor:
    found = _layer(layer)
    with torch.autocast(query.device.type, enabled=False):  # plans are made of float32 products
        return found.attend(query, key, value, mask, causal, scale).contiguous()


@_attend.register_fake
def _(query, key, value, mask, causal, scale, layer):  # type: ignore[no-untyped-def]
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def forget_layer(layer: Layer) -> None:
    """Make the id of a layer stale: code that still calls it gets an error."""
    if _LAYERS.get(layer.id) is layer:
        del _LAYERS[layer.id]
