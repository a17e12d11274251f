"""Processors that are diffusers' own code, with their attention led to a layer of ours."""

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
from dit_accel.hooks.context_parallel import gathered
from dit_accel.hooks.layers import Layer, attend_dense


class _Address:
    """Stands where the processor's backend name was: tells our dispatch which layer is calling."""

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
    backend: _Address,
    parallel_config: Any | None = None,
) -> Tensor:
    if dropout_p or enable_gqa or attention_kwargs:
        raise NotImplementedError(
            "attention with dropout, grouped queries or backend arguments cannot be led yet"
        )
    if torch.is_autocast_enabled(query.device.type):  # here, so that compiled code casts, too
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if attn_mask is not None and not isinstance(attn_mask, Tensor):
        return attend_dense(query, key, value, attn_mask, is_causal, scale, backend.layer)
    if parallel_config is not None:
        return gathered(
            *(query, key, value, attn_mask, is_causal, scale, backend.layer), parallel_config
        )
    return torch.ops.dit_accel.attend(query, key, value, attn_mask, is_causal, scale, backend.layer)


class _View:
    """A processor as its own code sees it, with our address in place of the backend name."""

    def __init__(self, processor: Any, address: _Address) -> None:
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
    backend: _Address,
) -> Tensor:
    """PyTorch's function of ``[B, H, S, D]`` tensors, led to our dispatch."""
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    out = _dispatch(
        *(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa), backend=backend
    )
    return out.transpose(1, 2)


_DISPATCH = "dispatch_attention_fn"
_LED = {_DISPATCH, "_scaled_dot_product_attention"}


class RedirectAttention(ast.NodeTransformer):
    """``F.scaled_dot_product_attention(...)`` becomes our function; it, and a dispatch that names no backend, get
    the layer's address.
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
    """Whether a processor calls PyTorch's scaled_dot_product_attention itself."""
    return "dispatch_attention_fn" not in processor_class.__call__.__code__.co_names


@functools.cache
def sparse_processor_class(original: Any) -> Any:
    """The subclass of a processor class whose ``__call__`` is the original code on our dispatch.

    Raises:
        UnsupportedProcessor: if that code calls neither diffusers' nor PyTorch's attention itself.
    """
    call = original.__call__
    names = call.__code__.co_names
    if "dispatch_attention_fn" in names:
        named = _names_backend(call.__code__)
        if named and "_attention_backend" not in names:
            raise UnsupportedProcessor(
                f"{original.__name__} calls an attention backend of its own choice, which cannot be replaced"
            )
        code = call.__code__ if named else _led_code(call)
        body = _with_globals(call, code, dispatch_attention_fn=_dispatch)
    elif "scaled_dot_product_attention" in names and not call.__code__.co_freevars:
        ours = {"_scaled_dot_product_attention": _scaled_dot_product_attention}
        body = _with_globals(call, _led_code(call), **ours)
    else:
        body = None
    if body is None or not _LED & set(body.__code__.co_names):  # or it spells the call otherwise
        raise UnsupportedProcessor(
            f"{original.__name__} calls neither dispatch_attention_fn nor F.scaled_dot_product_attention in its "
            "body, so its attention cannot be replaced"
        )

    def led_call(self, attn, *args, **kwargs):  # type: ignore[no-untyped-def]
        return body(self.view, attn, *args, **kwargs)

    def reduce(self):  # type: ignore[no-untyped-def]
        return (_identity, (self.original,))

    members = {"__call__": functools.update_wrapper(led_call, call), "__reduce__": reduce}
    return type(f"Sparse{original.__name__}", (original,), members)


def _names_backend(code: types.CodeType) -> bool:
    """Whether a call in the code has the keyword ``backend``."""
    return any(isinstance(c, tuple) and "backend" in c for c in code.co_consts)


def _with_globals(call: Any, code: types.CodeType, **replaced: Any) -> types.FunctionType:
    # Without __name__ Dynamo resolves these globals here, not in the original module.
    scope = {k: v for k, v in call.__globals__.items() if k != "__name__"} | replaced
    for name in code.co_names:  # functions of its module that dispatch for it
        helper = scope.get(name)
        if isinstance(helper, types.FunctionType) and _DISPATCH in helper.__code__.co_names:
            scope[name] = types.FunctionType(
                helper.__code__, scope, name, helper.__defaults__, helper.__closure__
            )
            scope[name].__kwdefaults__ = helper.__kwdefaults__
    body = types.FunctionType(code, scope, call.__name__, call.__defaults__, call.__closure__)
    body.__kwdefaults__ = call.__kwdefaults__
    return body


def _led_code(call: Any) -> types.CodeType:
    """The code of a method with its calls of ``F.scaled_dot_product_attention`` led to ours; its module is
    compiled only, never run.
    """
    lines, first = inspect.getsourcelines(call)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    tree = ast.fix_missing_locations(RedirectAttention().visit(tree))
    module = compile(ast.increment_lineno(tree, first - 1), call.__code__.co_filename, "exec")
    codes = [c for c in module.co_consts if isinstance(c, types.CodeType)]
    return next(c for c in codes if c.co_name == call.__name__)


def _identity(processor: Any) -> Any:
    return processor


def sparse_processor(original: Any, layer: Layer) -> Any:
    """A processor like ``original`` that leads to a layer."""
    processor = object.__new__(sparse_processor_class(original.__class__))
    processor.__dict__.update(original.__dict__)
    ours = {"original": original, "view": _View(processor, _Address(layer.id))}
    processor.__dict__.update(ours)  # not by attribute: a module would register them as its own
    layer.processor, layer.direct = processor, is_direct(original.__class__)
    return processor
