"""Remember which hooks of diffusers an action adds, and take exactly these off again."""

from __future__ import annotations

from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from dit_accel.hooks.install import below_offload_hook


class AddedHooks:
    """The hooks that were added to a transformer since this object was made.

    Args:
        transformer: The transformer.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer
        self._before = {module: set(_hooks_of(module)) for module in transformer.modules()}
        self._bare = {module for module in self._before if not hasattr(module, "_diffusers_hook")}
        self._own = {module for module in self._before if "forward" in vars(module)}

    def find(self) -> list[tuple[nn.Module, ModelHook]]:
        """Return the modules that have a new hook, with that hook."""
        return [
            (module, hook)
            for module, before in self._before.items()
            for hook in _hooks_of(module)
            if hook not in before
        ]

    def remove(
        self, added: list[tuple[nn.Module, ModelHook]], *, deinitialize: bool = True
    ) -> None:
        """Take hooks off. Hooks that others put above them stay and work.

        Args:
            added: What `find` returned.
            deinitialize: False leaves out the hook's own undoing, because layerwise casting refuses it.
        """
        for module, hook in reversed(added):
            with below_offload_hook(module):
                _remove(module, hook)
                if deinitialize:
                    hook.deinitalize_hook(module)
                self._restore_attributes(module)
        HookRegistry.check_if_exists_or_initialize(
            self._transformer
        ).invalidate_child_registries_cache()
        self._restore_attributes(self._transformer)

    def _restore_attributes(self, module: nn.Module) -> None:
        """Delete the attributes that hooks leave on a module that had none."""
        if _hooks_of(module):
            return
        attributes = vars(module)
        if module in self._bare:
            attributes.pop("_diffusers_hook", None)
        if module not in self._own and attributes.get("forward") == _class_forward(module):
            attributes.pop("forward", None)


def replace_forward(module: nn.Module, old: Any, new: Any) -> None:
    """Replace the innermost forward of a module, below all hooks that wrap it.

    Args:
        module: The module.
        old: The forward that is there.
        new: The forward that takes its place.
    """
    attributes = vars(module)
    if attributes.get("forward") is old:
        if new == _class_forward(module):
            del attributes["forward"]
        else:
            module.forward = new
    elif attributes.get("_old_forward") is old:  # below a hook of accelerate
        attributes["_old_forward"] = new
    registry = attributes.get("_diffusers_hook")
    for reference in registry._fn_refs if registry is not None else ():
        if reference.original_forward is old:
            reference.original_forward = new
        if reference.forward is old:
            reference.forward = new


def has_hook(module: nn.Module, name: str) -> bool:
    """Return True if a module has a hook of diffusers under a name."""
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and name in registry.hooks


def _class_forward(module: nn.Module) -> Any:
    return type(module).forward.__get__(module)


def _hooks_of(module: nn.Module) -> list[ModelHook]:
    registry = getattr(module, "_diffusers_hook", None)
    return list(registry.hooks.values()) if registry is not None else []


def _remove(module: Any, hook: ModelHook) -> None:
    """Take a hook off a module; a hook of ``new_forward`` above it keeps its own."""
    registry = module._diffusers_hook
    name = next((name for name, other in registry.hooks.items() if other is hook), None)
    if name is None:
        return
    index = registry._hook_order.index(name)
    reference = registry._fn_refs[index]
    below = reference.original_forward or reference.forward
    if index + 1 == len(registry._fn_refs):
        module.forward = below
    else:
        above = registry._fn_refs[index + 1]
        if above.original_forward is not None:
            above.original_forward = below
        else:
            above.forward = below
    del registry.hooks[name], registry._hook_order[index], registry._fn_refs[index]
