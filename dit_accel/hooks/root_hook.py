"""The hook on a whole transformer: tells the session where each forward begins and ends."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager, _set_cache_context
from torch import nn

from dit_accel.hooks.layers import ForwardHandler

HOOK = "dit_accel"
PERTURBED = "perturbed"


class _NoState(BaseState):
    def reset(self, *args: Any, **kwargs: Any) -> None: ...


class RootHook(ModelHook):
    """Brackets every forward of a transformer; carries the session, so that it is found again from
    the pipeline.
    """

    _is_stateful = True

    def __init__(self, stack: str, signature: inspect.Signature) -> None:
        super().__init__()
        self.owner: ForwardHandler | None = None
        self.stack, self.signature = stack, signature
        self.contexts = StateManager(_NoState)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        owner = self.owner
        if owner is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        bound = self.signature.bind(module, *args, **kwargs)
        if owner.may_run_again() and any(foreign_states(module)):
            raise RuntimeError(
                "guard 'on' cannot run a forward again under a diffusers cache, which would count it "
                "twice: use guard 'warn', or disable the cache"
            )
        context = self.contexts._context
        owner.begin_forward(self.stack, bound.arguments, config_of(module), context)
        try:
            with owner.recording(module):
                output = self._watched(owner, args, kwargs)

            def again(replaced: Mapping[str, Any]) -> Any:
                changed = inspect.BoundArguments(self.signature, {**bound.arguments, **replaced})
                with in_context(module, context, PERTURBED):
                    return self._watched(owner, changed.args[1:], changed.kwargs)

            return owner.guide(module, bound.arguments, output, again)
        except BaseException:
            owner.end_run()
            raise
        finally:
            owner.end_forward()

    def _watched(self, owner: ForwardHandler, args: Any, kwargs: Any) -> Any:
        """A forward; dense once more where the guard asks for it."""
        output = self.fn_ref.original_forward(*args, **kwargs)
        if owner.wants_dense_rerun():
            output = self.fn_ref.original_forward(*args, **kwargs)
        return output

    def reset_state(self, module: nn.Module) -> None:
        if self.owner is not None:
            self.owner.end_run()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("cannot copy a transformer with dit_accel enabled: disable it first")


@contextmanager
def in_context(module: nn.Module, outer: CacheContext | None, name: str) -> Iterator[None]:
    """A cache context of its own: diffusers' caches keep a state of their own for it."""
    inner = CacheContext(name) if outer is None else dataclasses.replace(outer, name=name)
    _set_cache_context(module, inner)
    try:
        yield
    finally:
        _set_cache_context(module, outer)


def foreign_states(transformer: nn.Module) -> Iterator[ModelHook]:
    """Hooks other than ours that keep state between forwards: diffusers' caches."""
    registries = (getattr(module, "_diffusers_hook", None) for module in transformer.modules())
    hooks = (hook for r in registries if r is not None for hook in r.hooks.values())
    return (hook for hook in hooks if hook._is_stateful and not isinstance(hook, RootHook))


def cache_without_contexts(transformer: nn.Module) -> str | None:
    """The name of a cache that keeps one state for all branches of a step, if there is one."""
    for hook in foreign_states(transformer):
        if not any(isinstance(value, StateManager) for value in vars(hook).values()):
            return type(hook).__name__
    return None


def config_of(transformer: nn.Module) -> Mapping[str, Any]:
    """A diffusers model's configuration."""
    config: Any = transformer.config
    return config


def root_hook(transformer: nn.Module, stack: str) -> RootHook:
    """Our hook on a transformer, registered if it is not there."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    hook = registry.get_hook(HOOK)
    if hook is None:
        hook = RootHook(stack, inspect.signature(type(transformer).forward))
        registry.register_hook(hook, HOOK)
        registry.invalidate_child_registries_cache()
    return hook


def owner_of(transformer: nn.Module) -> ForwardHandler | None:
    """The session installed on a transformer, if any."""
    registry = getattr(transformer, "_diffusers_hook", None)
    hook = registry.get_hook(HOOK) if registry is not None else None
    return hook.owner if hook is not None else None
