"""Attention modules of a transformer, and the custom op through which their processors call us."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from dit_accel.errors import RunFailed

if TYPE_CHECKING:
    from dit_accel.hooks.root_hook import ForwardCall

# The only global state: it maps ids, which compiled code holds as tensors, to live layers.
_LAYERS: weakref.WeakValueDictionary[int, Layer] = weakref.WeakValueDictionary()
_NEXT_ID = itertools.count()


@dataclass(frozen=True)
class DenseCall:
    """An attention call as diffusers would have made it; calling it computes dense attention.

    Attributes:
        query, key, value: Tensors ``[B, S, H, D]``.
        mask: Attention mask of diffusers; None without one.
        causal: True for causal attention.
        scale: Softmax scale; None is ``D ** -0.5``.
        backend: Backend that the user chose for the processor; None is diffusers' default.
        direct: True if the processor calls PyTorch's ``scaled_dot_product_attention`` itself.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    causal: bool
    scale: float | None
    backend: Any
    direct: bool = False

    @property
    def softmax_scale(self) -> float:
        """Return the softmax scale as a number."""
        return self.query.shape[-1] ** -0.5 if self.scale is None else self.scale

    @property
    def has_foreign_mask(self) -> bool:
        """Return True if the mask is not a tensor, such as FlexAttention's BlockMask."""
        return self.mask is not None and not isinstance(self.mask, Tensor)

    def __call__(self) -> Tensor:
        """Return dense attention ``[B, S, H, D]`` on the user's own backend."""
        if self.direct:
            query, key, value = (t.transpose(1, 2) for t in (self.query, self.key, self.value))
            return torch.nn.functional.scaled_dot_product_attention(
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
    """The interface through which the hooks call a session."""

    def forward(self, call: ForwardCall) -> Any:
        """Run a forward of a transformer."""

    def attend(self, layer: Layer, dense: DenseCall) -> Tensor:
        """Return the attention of a call, ``[B, S, H, D]``."""

    def reset(self) -> None:
        """Free the state of the run, because the pipeline's call is over."""


class Layer:
    """An attention module of a transformer.

    Args:
        handler: The session that answers its calls.
        component: Name of the transformer in its pipeline.
        name: Name of the module in the transformer.
        index: Index among the attention modules of the transformer.
        count: Number of these modules.
    """

    def __init__(
        self, handler: ForwardHandler, component: str, name: str, index: int, count: int
    ) -> None:
        self.handler = handler
        self.component, self.name, self.index, self.count = component, name, index, count
        self.processor: Any = None
        self.direct = False
        self.id = next(_NEXT_ID)
        _LAYERS[self.id] = self

    @property
    def full_name(self) -> str:
        """Return the name with its component, such as ``"transformer.blocks.3.attn1"``."""
        return f"{self.component}.{self.name}"

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
        backend = None if self.direct else getattr(self.processor, "_attention_backend", None)
        dense = DenseCall(query, key, value, mask, causal, scale, backend, self.direct)
        return self.handler.attend(self, dense)


def find_layer(layer_id: Tensor) -> Layer:
    """Return the layer of an id.

    Raises:
        RuntimeError: If the layer was uninstalled.
    """
    layer = _LAYERS.get(int(layer_id))
    if layer is None:
        raise RuntimeError(
            "this attention layer was uninstalled: compiled code outlived its pipeline's session"
        )
    return layer


# A CUDA graph must not capture this op, because it decides, keeps state and measures time.
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
    attention_layer = find_layer(layer)
    with torch.autocast(query.device.type, enabled=False):  # plans need float32 products
        return attention_layer.attend(query, key, value, mask, causal, scale).contiguous()


@_attend.register_fake
def _(query, key, value, mask, causal, scale, layer):  # type: ignore[no-untyped-def]
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("dit_accel::refuse_gradient", mutates_args=())
def _refuse_gradient(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    raise RunFailed(
        "no gradient flows through enabled attention: call disable_sparse_attention(), disable_quantized_attention() "
        "and disable_perturbed_guidance() before the forward, or run it in torch.no_grad()"
    )


@_refuse_gradient.register_fake
def _(gradient, shape):  # type: ignore[no-untyped-def]  # compiled code traces a backward that nobody may run
    return gradient.new_empty(shape)


def _keep_shapes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shapes = [tensor.shape for tensor in inputs[:3]]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    refused = (torch.ops.dit_accel.refuse_gradient(gradient, shape) for shape in ctx.shapes)
    return (*refused, None, None, None, None)


_attend.register_autograd(_backward, setup_context=_keep_shapes)


def forget_layer(layer: Layer) -> None:
    """Make the id of a layer stale, so that code which still calls it gets an error."""
    if _LAYERS.get(layer.id) is layer:
        del _LAYERS[layer.id]
