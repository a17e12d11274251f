"""The hook on a whole transformer. It hands every forward to the session."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager, _set_cache_context
from torch import nn

from dit_accel.hooks.layers import ForwardHandler

HOOK = "dit_accel"

RerunForward = Callable[[Mapping[str, Any]], Any]
"""Runs the transformer's forward once more, with other values for some of its arguments."""


@dataclass(frozen=True)
class ForwardCall:
    """One forward of a transformer, which can be run more than once.

    Attributes:
        module: The transformer.
        component: Its name in the pipeline.
        context: Cache context of diffusers; None outside of one.
        args, kwargs: Arguments as the caller gave them.
    """

    module: nn.Module
    component: str
    context: CacheContext | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    _signature: inspect.Signature
    _original: Callable[..., Any]

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """Return the arguments by name."""
        return self._signature.bind(self.module, *self.args, **self.kwargs).arguments

    def run(self) -> Any:
        """Return the transformer's own output."""
        return self._original(*self.args, **self.kwargs)

    def replace(self, replaced: Mapping[str, Any]) -> ForwardCall:
        """Return the same call with other values for some arguments.

        Arguments keep their style, because decorators of diffusers read keywords only.
        """
        names = list(self._signature.parameters)[1 : len(self.args) + 1]
        args = tuple(
            replaced.get(name, value) for name, value in zip(names, self.args, strict=True)
        )
        kwargs = {**self.kwargs, **{k: v for k, v in replaced.items() if k not in names}}
        return dataclasses.replace(self, args=args, kwargs=kwargs)

    def with_own_lists(self) -> ForwardCall:
        """Return the same call with copies of its lists, because HunyuanDiT's forward empties one of them."""
        return self.replace(
            {name: list(value) for name, value in self.arguments.items() if type(value) is list}
        )

    @contextmanager
    def in_context(self, name: str) -> Iterator[ForwardCall]:
        """Enter another cache context, in which diffusers' caches keep a separate state."""
        outer = self.context
        inner = CacheContext(name) if outer is None else dataclasses.replace(outer, name=name)
        with self.entering(inner) as call:
            yield call

    @contextmanager
    def entering(self, context: CacheContext) -> Iterator[ForwardCall]:
        """Set a cache context for the block, which gets the call with that context."""
        _set_cache_context(self.module, context)
        try:
            yield dataclasses.replace(self, context=context)
        finally:
            _set_cache_context(self.module, self.context)


class _NoState(BaseState):
    def reset(self, *args: Any, **kwargs: Any) -> None: ...


class _ThreadContexts(StateManager):
    """The cache context that each thread set. Diffusers' own managers share one between threads."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        super().__init__(_NoState)

    @property
    def _context(self) -> CacheContext | None:
        context: CacheContext | None = getattr(self._of_thread, "context", None)
        return context

    @_context.setter
    def _context(self, context: CacheContext | None) -> None:
        self._of_thread.context = context


class RootHook(ModelHook):
    """Hook that replaces every forward of a transformer by the session's.

    It also carries the session, so that the session can be found from the pipeline.
    """

    _is_stateful = True

    def __init__(self, component: str, signature: inspect.Signature) -> None:
        super().__init__()
        self.handler: ForwardHandler | None = None
        self.component, self.signature = component, signature
        self.contexts = _ThreadContexts()

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the forward through the session, or unchanged if there is none."""
        original = self.fn_ref.original_forward
        if self.handler is None:
            return original(*args, **kwargs)
        context = self.contexts._context
        call = ForwardCall(module, self.component, context, args, kwargs, self.signature, original)
        return self.handler.forward(call)

    def reset_state(self, module: nn.Module) -> None:
        """Tell the session that the pipeline's call is over."""
        if self.handler is not None:
            self.handler.reset()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("cannot copy a transformer with dit_accel enabled: disable it first")


def foreign_states(transformer: nn.Module) -> Iterator[ModelHook]:
    """Yield the hooks of others that keep state between forwards, such as diffusers' caches."""
    registries = (getattr(module, "_diffusers_hook", None) for module in transformer.modules())
    hooks = (hook for r in registries if r is not None for hook in r.hooks.values())
    return (hook for hook in hooks if hook._is_stateful and not isinstance(hook, RootHook))


def has_cache_dit(transformer: nn.Module) -> bool:
    """Return True if the package cache-dit caches blocks of a transformer."""
    manager = getattr(transformer, "_context_manager", None)
    return type(manager).__module__.partition(".")[0] == "cache_dit"


def cache_without_contexts(transformer: nn.Module) -> str | None:
    """Return the name of a cache that shares one state between the branches of a step, if any."""
    for hook in foreign_states(transformer):
        if not any(isinstance(value, StateManager) for value in vars(hook).values()):
            return type(hook).__name__
    return None


def config_of(transformer: nn.Module) -> Mapping[str, Any]:
    """Return the configuration of a diffusers model."""
    config: Mapping[str, Any] = cast(Any, transformer).config
    return config


class _HookedForward(functools.partial[Any]):
    """A hooked forward that stays itself when it is bound to its module again.

    A method does that, too. Cache-dit binds the forward that it found when it puts it back.
    """

    def __get__(self, module: nn.Module, kind: type | None = None) -> _HookedForward:
        return self


def root_hook(transformer: nn.Module, component: str, *, again: bool = False) -> RootHook:
    """Return our hook on a transformer; register it if it is missing.

    Args:
        transformer: The transformer.
        component: Its name in the pipeline.
        again: Register it on the transformer's present forward, which someone set without regard to the hook.
    """
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    hook: RootHook | None = registry.get_hook(HOOK)
    if hook is not None and (again or _is_unhooked(transformer)):
        hook.handler = None
        index = registry._hook_order.index(HOOK)
        del registry.hooks[HOOK], registry._hook_order[index], registry._fn_refs[index]
        hook = None
    if hook is None:
        hook = RootHook(component, inspect.signature(type(transformer).forward))
        registry.register_hook(hook, HOOK)
        hooked: Any = transformer.forward
        transformer.forward = functools.update_wrapper(_HookedForward(hooked), hooked)
        registry.invalidate_child_registries_cache()
    return hook


def _is_unhooked(transformer: nn.Module) -> bool:
    """Return True if a transformer runs its class's own forward, below all hooks that it may have."""
    forward = vars(transformer).get("forward")
    return forward is None or forward == type(transformer).forward.__get__(transformer)


def handler_of(transformer: nn.Module) -> ForwardHandler | None:
    """Return the session that is installed on a transformer, if any."""
    registry = getattr(transformer, "_diffusers_hook", None)
    hook: RootHook | None = registry.get_hook(HOOK) if registry is not None else None
    return hook.handler if hook is not None else None
