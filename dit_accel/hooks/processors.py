"""Processors that run diffusers' own code and redirect its attention to our layers."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from typing import Any

import torch
from torch import Tensor

from dit_accel.errors import UnsupportedProcessor
from dit_accel.hooks.context_parallel import ulysses_attention
from dit_accel.hooks.layers import Layer, find_layer


class _LayerAddress:
    """Value in the place of the processor's backend name. It tells our dispatch which layer is calling."""

    def __init__(self, layer_id: int) -> None:
        self.layer = torch.tensor(layer_id, device="cpu")


def _dispatch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: _LayerAddress,
    parallel_config: Any | None = None,
) -> Tensor:
    if dropout_p or enable_gqa or attention_kwargs:
        raise NotImplementedError(
            "attention with dropout, grouped queries or backend arguments cannot be redirected yet"
        )
    if torch.is_autocast_enabled(
        query.device.type
    ):  # cast here, because compiled code casts here too
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if attn_mask is not None and not isinstance(attn_mask, Tensor):
        # A custom op takes tensors only, and this mask is none: FlexAttention's BlockMask, for instance.
        layer = find_layer(backend.layer)
        return layer.attend(query, key, value, attn_mask, is_causal, scale)
    if parallel_config is not None:
        return ulysses_attention(
            *(query, key, value, attn_mask, is_causal, scale, backend.layer), parallel_config
        )
    out: Tensor = torch.ops.dit_accel.attend(
        query, key, value, attn_mask, is_causal, scale, backend.layer
    )
    return out


class _ProcessorView:
    """A processor as its own code sees it, with the layer's address in place of the backend name."""

    def __init__(self, processor: Any, address: _LayerAddress) -> None:
        self._attention_backend = address
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


def _scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    backend: _LayerAddress,
) -> Tensor:
    """Replace PyTorch's function of the same name, for tensors ``[B, H, S, D]``."""
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    out = _dispatch(
        *(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa), backend=backend
    )
    return out.transpose(1, 2)


_DISPATCH = "dispatch_attention_fn"
_REDIRECTED = {_DISPATCH, "_scaled_dot_product_attention"}


class RedirectAttention(ast.NodeTransformer):
    """Rewrite of a processor's source code.

    ``F.scaled_dot_product_attention(...)`` becomes our function. It gets the layer's address, and so does a call of
    ``dispatch_attention_fn`` that names no backend.
    """

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        name = ast.unparse(node.func)
        if name == "F.scaled_dot_product_attention":
            node.func = ast.Name("_scaled_dot_product_attention", ast.Load())
        elif name != "dispatch_attention_fn" or any(k.arg == "backend" for k in node.keywords):
            return node
        address = ast.parse("self._attention_backend", mode="eval").body
        node.keywords.append(ast.keyword("backend", address))
        return node


def is_direct(processor_class: Any) -> bool:
    """Return True if a processor calls PyTorch's ``scaled_dot_product_attention`` itself."""
    return "dispatch_attention_fn" not in processor_class.__call__.__code__.co_names


@functools.cache
def sparse_processor_class(original: Any) -> Any:
    """Return a subclass of a processor class whose ``__call__`` is the original code on our dispatch.

    Raises:
        UnsupportedProcessor: If that code calls neither diffusers' nor PyTorch's attention itself.
    """
    call = original.__call__
    names = call.__code__.co_names
    if "dispatch_attention_fn" in names:
        named = _names_backend(call.__code__)
        if named and "_attention_backend" not in names:
            raise UnsupportedProcessor(
                f"{original.__name__} calls an attention backend of its own choice, which cannot be replaced"
            )
        code = call.__code__ if named else _redirected_code(call)
        body = _with_globals(call, code, dispatch_attention_fn=_dispatch)
    elif "scaled_dot_product_attention" in names and not call.__code__.co_freevars:
        ours = {"_scaled_dot_product_attention": _scaled_dot_product_attention}
        body = _with_globals(call, _redirected_code(call), **ours)
    else:
        body = None
    if body is None or not _REDIRECTED & set(
        body.__code__.co_names
    ):  # or the call has another spelling
        raise UnsupportedProcessor(
            f"{original.__name__} calls neither dispatch_attention_fn nor F.scaled_dot_product_attention in its "
            "body, so its attention cannot be replaced"
        )

    def redirected_call(self, attn, *args, **kwargs):  # type: ignore[no-untyped-def]
        return body(self.view, attn, *args, **kwargs)

    def reduce(self):  # type: ignore[no-untyped-def]
        return (_identity, (self.original,))

    members = {"__call__": functools.update_wrapper(redirected_call, call), "__reduce__": reduce}
    return type(f"Sparse{original.__name__}", (original,), members)


def _names_backend(code: types.CodeType) -> bool:
    """Return True if a call in the code has the keyword ``backend``."""
    return any(isinstance(c, tuple) and "backend" in c for c in code.co_consts)


def _with_globals(call: Any, code: types.CodeType, **replaced: Any) -> types.FunctionType:
    # Without __name__ Dynamo resolves these globals here, not in the original module.
    scope = {k: v for k, v in call.__globals__.items() if k != "__name__"} | replaced
    for name in code.co_names:  # helper functions of its module that call the dispatch
        helper = scope.get(name)
        if isinstance(helper, types.FunctionType) and _DISPATCH in helper.__code__.co_names:
            scope[name] = types.FunctionType(
                helper.__code__, scope, name, helper.__defaults__, helper.__closure__
            )
            scope[name].__kwdefaults__ = helper.__kwdefaults__
    body = types.FunctionType(code, scope, call.__name__, call.__defaults__, call.__closure__)
    body.__kwdefaults__ = call.__kwdefaults__
    return body


def _redirected_code(call: Any) -> types.CodeType:
    """Return the code of a method after `RedirectAttention`. The module around it is compiled, but never run."""
    lines, first = inspect.getsourcelines(call)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    tree = ast.fix_missing_locations(RedirectAttention().visit(tree))
    module = compile(ast.increment_lineno(tree, first - 1), call.__code__.co_filename, "exec")
    codes = [c for c in module.co_consts if isinstance(c, types.CodeType)]
    return next(c for c in codes if c.co_name == call.__name__)


def _identity(processor: Any) -> Any:
    return processor


def sparse_processor(original: Any, layer: Layer) -> Any:
    """Return a processor like ``original`` whose attention goes to a layer."""
    processor = object.__new__(sparse_processor_class(original.__class__))
    processor.__dict__.update(original.__dict__)
    ours = {"original": original, "view": _ProcessorView(processor, _LayerAddress(layer.id))}
    processor.__dict__.update(
        ours
    )  # not by setattr, because a module would register them as its own
    layer.processor, layer.direct = processor, is_direct(original.__class__)
    return processor
