"""The only file that touches diffusers' processors and hooks.

``install`` gives each self-attention module a processor of a subclass of its own processor class.
The subclass runs the very code of the original ``__call__`` (projections, norms, RoPE, LoRA), with
``dispatch_attention_fn`` rebound to ours; ours leads to ``Layer.attend`` through one custom op, so
that compiled blocks see one opaque call and one class for all layers. A root hook tells the session
where each forward begins and ends. Nothing is patched globally; ``uninstall`` puts back the very
same processor objects.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import types
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from dit_accel_pipelines import Family

HOOK = "dit_accel"

_LAYERS: weakref.WeakValueDictionary[int, Layer] = weakref.WeakValueDictionary()
_NEXT_ID = itertools.count()


class UnsupportedProcessor(TypeError):
    """A processor whose code we cannot lead to our attention."""


@dataclass(frozen=True)
class DenseCall:
    """A call as diffusers would have made it, on the user's own backend; tensors are ``[B, S, H, D]``."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    scale: float | None
    backend: Any

    def __call__(self) -> Tensor:
        out: Tensor = dispatch_attention_fn(
            *(self.query, self.key, self.value),
            attn_mask=self.mask,
            is_causal=self.causal,
            scale=self.scale,
            backend=self.backend,
        )
        return out


class Owner(Protocol):
    """What the seam asks of a session."""

    def attend(
        self,
        layer: Layer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        dense: DenseCall,
    ) -> Tensor: ...

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

    def end_forward(self) -> None: ...

    def end_run(self) -> None: ...


class Layer:
    """One attention module: its place, its processor, and the memory the session keeps for it."""

    def __init__(self, owner: Owner, stack: str, name: str, index: int, count: int) -> None:
        self.owner = owner
        self.stack, self.name, self.index, self.count = stack, name, index, count
        self.states: dict[Any, Any] = {}
        self.processor: Any = None
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
        """Attention of ``[B, S, H, D]`` tensors: the session's way, or dense on the user's own
        backend.
        """
        backend = self.processor._attention_backend
        dense = DenseCall(query, key, value, mask, causal, scale, backend)
        if mask is not None:
            return self.owner.fall_back("attention mask", dense)
        if causal:
            return self.owner.fall_back("causal attention", dense)
        if query.shape[1] != key.shape[1]:
            return self.owner.fall_back("queries and keys of different length", dense)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return self.owner.attend(self, query, key, value, scale, dense)


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
    found = _LAYERS.get(int(layer))
    if found is None:
        raise RuntimeError(
            "this attention layer was uninstalled: compiled code outlived its pipeline's session"
        )
    with torch.autocast(query.device.type, enabled=False):  # plans are made of float32 products
        return found.attend(query, key, value, mask, causal, scale).contiguous()


@_attend.register_fake
def _(query, key, value, mask, causal, scale, layer):  # type: ignore[no-untyped-def]
    return torch.empty_like(query, memory_format=torch.contiguous_format)


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
    if parallel_config is not None:
        raise NotImplementedError(
            "context parallelism does not work with sparse attention yet: disable one of them"
        )
    if dropout_p or enable_gqa or attention_kwargs:
        raise NotImplementedError(
            "attention with dropout, grouped queries or backend arguments cannot be made sparse yet"
        )
    if torch.is_autocast_enabled(query.device.type):  # here, so that compiled code casts, too
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return torch.ops.dit_accel.attend(query, key, value, attn_mask, is_causal, scale, backend.layer)


class _View:
    """A processor as its own code sees it, with our address in place of the backend name."""

    def __init__(self, processor: Any, address: _Address) -> None:
        self._attention_backend = address
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


@functools.cache
def _sparse_class(original: Any) -> Any:
    """The subclass of a processor class whose ``__call__`` is the original code on our dispatch."""
    call = original.__call__
    if "dispatch_attention_fn" not in call.__code__.co_names:
        raise UnsupportedProcessor(
            f"{original.__name__} does not call dispatch_attention_fn in its body, so its attention cannot be replaced"
        )
    # Without __name__ Dynamo resolves these globals here, not in the original module.
    scope = {k: v for k, v in call.__globals__.items() if k != "__name__"}
    scope["dispatch_attention_fn"] = _dispatch
    body = types.FunctionType(
        call.__code__, scope, call.__name__, call.__defaults__, call.__closure__
    )
    body.__kwdefaults__ = call.__kwdefaults__

    def sparse_call(self, attn, *args, **kwargs):  # type: ignore[no-untyped-def]
        return body(self.view, attn, *args, **kwargs)

    def reduce(self):  # type: ignore[no-untyped-def]
        return (_identity, (self.original,))

    members = {"__call__": functools.update_wrapper(sparse_call, call), "__reduce__": reduce}
    return type(f"Sparse{original.__name__}", (original,), members)


def _identity(processor: Any) -> Any:
    return processor


def _sparse_processor(original: Any, layer: Layer) -> Any:
    sparse_class = _sparse_class(original.__class__)
    processor = object.__new__(sparse_class)
    processor.__dict__.update(original.__dict__)
    processor.original = original
    processor.view = _View(processor, _Address(layer.id))
    layer.processor = processor
    return processor


class _NoState(BaseState):
    def reset(self, *args: Any, **kwargs: Any) -> None: ...


class RootHook(ModelHook):
    """Brackets every forward of a transformer; carries the session, so that it is found again from
    the pipeline.
    """

    _is_stateful = True

    def __init__(self, stack: str, signature: inspect.Signature) -> None:
        super().__init__()
        self.owner: Owner | None = None
        self.stack, self.signature = stack, signature
        self.contexts = StateManager(_NoState)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        owner = self.owner
        if owner is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        arguments = self.signature.bind(module, *args, **kwargs).arguments
        if owner.may_run_again() and has_foreign_state(module):
            raise RuntimeError(
                "guard 'on' cannot run a forward again under a diffusers cache, which would count it "
                "twice: use guard 'warn', or disable the cache"
            )
        owner.begin_forward(self.stack, arguments, config_of(module), self.contexts._context)
        try:
            output = self.fn_ref.original_forward(*args, **kwargs)
            if owner.wants_dense_rerun():
                output = self.fn_ref.original_forward(*args, **kwargs)
            return output
        except BaseException:
            owner.end_run()
            raise
        finally:
            owner.end_forward()

    def reset_state(self, module: nn.Module) -> None:
        if self.owner is not None:
            self.owner.end_run()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("cannot copy a transformer with sparse attention enabled: disable it first")


def has_foreign_state(transformer: nn.Module) -> bool:
    """Whether hooks other than ours keep state between forwards: diffusers' caches do."""
    registries = (getattr(module, "_diffusers_hook", None) for module in transformer.modules())
    hooks = (hook for r in registries if r is not None for hook in r.hooks.values())
    return any(hook._is_stateful and not isinstance(hook, RootHook) for hook in hooks)


def processor_of(attention: nn.Module) -> Any:
    """The processor of an attention module."""
    return attention.processor


def config_of(transformer: nn.Module) -> Mapping[str, Any]:
    """A diffusers model's configuration."""
    config: Any = transformer.config
    return config


@dataclass(frozen=True)
class Installation:
    """What was changed on one transformer, and the way back."""

    transformer: nn.Module
    layers: tuple[Layer, ...]
    originals: tuple[tuple[nn.Module, Any], ...]
    forward_before: Any
    forward_hooked: Any

    def replaced(self, stack: str) -> list[str]:
        """Names of the layers of a transformer whose processor someone replaced meanwhile."""
        return [
            layer.name
            for (module, _), layer in zip(self.originals, self.layers, strict=True)
            if layer.stack == stack and module.processor is not layer.processor
        ]

    def uninstall(self) -> None:
        """Put back the original processors (unless someone replaced ours meanwhile), with the backend
        and parallel settings that were made on ours, and remove the hook.
        """
        for (module, original), layer in zip(self.originals, self.layers, strict=True):
            if module.processor is layer.processor:
                module.processor = original
            for name in ("_attention_backend", "_parallel_config"):
                value = getattr(layer.processor, name, None)
                if getattr(original, name, None) is not value:
                    setattr(original, name, value)
            if _LAYERS.get(layer.id) is layer:
                del _LAYERS[layer.id]
        self._remove_hook()

    def _remove_hook(self) -> None:
        registry = HookRegistry.check_if_exists_or_initialize(self.transformer)
        hook = registry.get_hook(HOOK)
        if hook is None:
            return
        hook.owner = None
        forward = vars(self.transformer).get("forward")
        if next(reversed(registry.hooks)) == HOOK and forward is not self.forward_hooked:
            return  # someone wrapped our forward: the hook stays below theirs, and does nothing
        registry.remove_hook(HOOK, recurse=False)
        if not registry.hooks and self.forward_before is None:
            vars(self.transformer).pop("forward", None)
            del self.transformer._diffusers_hook


def install(transformer: nn.Module, stack: str, family: Family, owner: Owner) -> Installation:
    """Lead the self-attention of a transformer to ``owner.attend``.

    Raises:
        UnsupportedProcessor: if a processor's code cannot be led; nothing is changed then.
    """
    modules = [(name, module) for name, module in family.attention_modules(transformer)]
    for _, module in modules:
        _sparse_class(processor_of(module).__class__)
    layers, originals = [], []
    for index, (name, module) in enumerate(modules):
        layer = Layer(owner, stack, name, index, len(modules))
        original = processor_of(module)
        originals.append((module, original))
        module.processor = _sparse_processor(original, layer)
        layers.append(layer)
    before = vars(transformer).get("forward")
    root_hook(transformer, stack).owner = owner
    hooked = vars(transformer)["forward"]
    return Installation(transformer, tuple(layers), tuple(originals), before, hooked)


def check_processors(transformer: nn.Module, family: Family) -> None:
    """Raise UnsupportedProcessor unless every self-attention of a transformer can be led."""
    for _, module in family.attention_modules(transformer):
        processor = processor_of(module)
        if not hasattr(processor, "original"):
            _sparse_class(processor.__class__)


def root_hook(transformer: nn.Module, stack: str) -> RootHook:
    """Our hook on a transformer, registered if it is not there."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    hook = registry.get_hook(HOOK)
    if hook is None:
        hook = RootHook(stack, inspect.signature(type(transformer).forward))
        registry.register_hook(hook, HOOK)
        registry.invalidate_child_registries_cache()
    return hook


def owner_of(transformer: nn.Module) -> Owner | None:
    """The session installed on a transformer, if any."""
    registry = getattr(transformer, "_diffusers_hook", None)
    hook = registry.get_hook(HOOK) if registry is not None else None
    return hook.owner if hook is not None else None
