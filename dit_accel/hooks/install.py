"""Install our processors and the root hook on a transformer, and take them off again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers.hooks import HookRegistry
from torch import nn

from dit_accel.errors import UnsupportedProcessor
from dit_accel.hooks.active_pipeline import is_running
from dit_accel.hooks.context_parallel import splits_inputs_before, ulysses_degree
from dit_accel.hooks.layers import ForwardHandler, Layer, forget_layer
from dit_accel.hooks.linear_attention import LinearLayer, check_linear_processor, linear_processor
from dit_accel.hooks.processors import sparse_processor, sparse_processor_class
from dit_accel.hooks.root_hook import HOOK, root_hook
from dit_accel_pipelines import Family


def processor_of(attention: nn.Module) -> Any:
    """Return the processor of an attention module."""
    return attention.processor


@dataclass(frozen=True)
class Installation:
    """The changes on one transformer, and the way back.

    Attributes:
        transformer: The transformer.
        layers: Its self-attention modules, in the order of execution.
        originals: Each of these modules with its original processor.
        forward_before, forward_hooked: ``transformer.forward`` as an instance attribute, before and after.
    """

    transformer: nn.Module
    layers: tuple[Layer, ...]
    originals: tuple[tuple[nn.Module, Any], ...]
    forward_before: Any
    forward_hooked: Any

    def replaced_layers(self, component: str) -> list[str]:
        """Return the names of the layers of a component whose processor someone else replaced."""
        return [
            layer.name
            for (module, _), layer in zip(self.originals, self.layers, strict=True)
            if layer.component == component and module.processor is not layer.processor
        ]

    def ulysses_degree(self) -> int:
        """Return the number of devices that share a sequence.

        Raises:
            RuntimeError: If context parallelism was enabled after us, because forwards then begin with a part of the
                tokens.
        """
        degree = max((ulysses_degree(layer.processor) for layer in self.layers), default=1)
        if degree > 1 and splits_inputs_before(self.transformer, HOOK):
            raise RuntimeError(
                "context parallelism was enabled after dit_accel: call enable_parallelism first"
            )
        return degree

    def is_bypassed(self) -> bool:
        """Return True if the transformer's forward runs now and the next one would also miss our hook.

        Call it outside of a forward that our hook began.
        """
        attributes = vars(self.transformer)
        forward = attributes.get("forward")
        inner = attributes.get("_old_forward") if forward is not None else None
        is_hooked = self.forward_hooked in (forward, inner)
        return not is_hooked and is_running(self.transformer)

    def hook_again(self, handler: ForwardHandler) -> Installation:
        """Put the hook on the forward that someone else set. The forward that runs now is not affected."""
        with below_offload_hook(self.transformer):
            before = vars(self.transformer).get("forward")
            root_hook(self.transformer, self.layers[0].component, again=True).handler = handler
            hooked = vars(self.transformer)["forward"]
        return dataclasses.replace(self, forward_before=before, forward_hooked=hooked)

    def uninstall(self) -> None:
        """Put the original processors back and remove the hook.

        A processor that someone else replaced stays. Backend and parallel settings that were made on our processors
        move to the originals.
        """
        for (module, original), layer in zip(self.originals, self.layers, strict=True):
            if module.processor is layer.processor:
                module.processor = original
            for name in ("_attention_backend", "_parallel_config"):
                value = getattr(layer.processor, name, None)
                if getattr(original, name, None) is not value:
                    setattr(original, name, value)
            forget_layer(layer)
        self._remove_hook()

    def _remove_hook(self) -> None:
        with below_offload_hook(self.transformer):
            self._remove_root_hook()

    def _remove_root_hook(self) -> None:
        registry = HookRegistry.check_if_exists_or_initialize(self.transformer)
        hook = registry.get_hook(HOOK)
        if hook is None:
            return
        hook.handler = None
        forward = vars(self.transformer).get("forward")
        if next(reversed(registry.hooks)) == HOOK and forward is not self.forward_hooked:
            return  # someone wrapped our forward: the hook stays below theirs, and does nothing
        registry.remove_hook(HOOK, recurse=False)
        if not registry.hooks and self.forward_before is None:
            vars(self.transformer).pop("forward", None)
            del self.transformer._diffusers_hook


def install(
    transformer: nn.Module, component: str, family: Family, handler: ForwardHandler
) -> Installation:
    """Redirect the forwards and the self-attention of a transformer to a handler.

    Raises:
        UnsupportedProcessor: If the code of a processor cannot be redirected. Nothing is changed then.
    """
    modules = list(family.attention_modules(transformer))
    check_processors(transformer, family)
    make_layer = LinearLayer if family.linear else Layer
    make_processor: Any = linear_processor if family.linear else sparse_processor
    layers, originals = [], []
    for index, (name, module) in enumerate(modules):
        layer = make_layer(handler, component, name, index, len(modules))
        original = processor_of(module)
        originals.append((module, original))
        module.processor = make_processor(original, layer)
        layers.append(layer)
    with below_offload_hook(transformer):
        before = vars(transformer).get("forward")
        root_hook(transformer, component).handler = handler
        hooked = vars(transformer)["forward"]
    return Installation(transformer, tuple(layers), tuple(originals), before, hooked)


@contextmanager
def below_offload_hook(transformer: nn.Module) -> Iterator[None]:
    """Expose the forward below accelerate's offload hook while a ``with`` block runs.

    A hook belongs below it, because pipelines take the offload hook off and put it back after each call. That drops
    every hook above it.
    """
    attributes = vars(transformer)
    if not {"_old_forward", "forward"} <= attributes.keys():
        yield
        return
    offloaded, inner = attributes.pop("forward"), attributes["_old_forward"]
    if getattr(inner, "__func__", None) is not type(transformer).forward:
        attributes["forward"] = inner
    try:
        yield
    finally:
        attributes["_old_forward"] = transformer.forward
        attributes["forward"] = offloaded


def is_patchable(attention: nn.Module) -> bool:
    """Return True if a module has a processor whose attention we can replace."""
    processor = getattr(attention, "processor", None)
    if processor is None:
        return False
    try:
        sparse_processor_class(getattr(processor, "original", processor).__class__)
    except (UnsupportedProcessor, OSError):  # OSError: the source of the code is missing
        return False
    return True


def check_processors(transformer: nn.Module, family: Family) -> None:
    """Raise UnsupportedProcessor unless every self-attention of a transformer can be redirected."""
    for _, module in family.attention_modules(transformer):
        processor = processor_of(module)
        if hasattr(processor, "original"):
            continue
        if family.linear:
            check_linear_processor(processor)
        else:
            sparse_processor_class(processor.__class__)
