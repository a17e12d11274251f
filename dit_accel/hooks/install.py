"""What is changed on a transformer, and the exact way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.hooks import HookRegistry
from torch import nn

from dit_accel.errors import UnsupportedProcessor
from dit_accel.hooks.context_parallel import splits_inputs_before, ulysses_degree
from dit_accel.hooks.layers import ForwardHandler, Layer, forget_layer
from dit_accel.hooks.processors import sparse_processor, sparse_processor_class
from dit_accel.hooks.root_hook import HOOK, root_hook
from dit_accel_pipelines import Family


def processor_of(attention: nn.Module) -> Any:
    """The processor of an attention module."""
    return attention.processor


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

    def ulysses_degree(self) -> int:
        """Devices that share a sequence.

        Raises:
            RuntimeError: if context parallelism was enabled after us: forwards then begin with a part of the tokens.
        """
        degree = max((ulysses_degree(layer.processor) for layer in self.layers), default=1)
        if degree > 1 and splits_inputs_before(self.transformer, HOOK):
            raise RuntimeError(
                "context parallelism was enabled after dit_accel: call enable_parallelism first"
            )
        return degree

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
            forget_layer(layer)
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


def install(
    transformer: nn.Module, stack: str, family: Family, owner: ForwardHandler
) -> Installation:
    """Lead the self-attention of a transformer to ``owner.attend``.

    Raises:
        UnsupportedProcessor: if a processor's code cannot be led; nothing is changed then.
    """
    modules = [(name, module) for name, module in family.attention_modules(transformer)]
    for _, module in modules:
        sparse_processor_class(processor_of(module).__class__)
    layers, originals = [], []
    for index, (name, module) in enumerate(modules):
        layer = Layer(owner, stack, name, index, len(modules))
        original = processor_of(module)
        originals.append((module, original))
        module.processor = sparse_processor(original, layer)
        layers.append(layer)
    before = vars(transformer).get("forward")
    root_hook(transformer, stack).owner = owner
    hooked = vars(transformer)["forward"]
    return Installation(transformer, tuple(layers), tuple(originals), before, hooked)


def is_patchable(attention: nn.Module) -> bool:
    """Whether a module has a processor whose attention we can replace."""
    processor = getattr(attention, "processor", None)
    if processor is None:
        return False
    try:
        sparse_processor_class(getattr(processor, "original", processor).__class__)
    except (UnsupportedProcessor, OSError):  # OSError: code without a source
        return False
    return True


def check_processors(transformer: nn.Module, family: Family) -> None:
    """Raise UnsupportedProcessor unless every self-attention of a transformer can be led."""
    for _, module in family.attention_modules(transformer):
        processor = processor_of(module)
        if not hasattr(processor, "original"):
            sparse_processor_class(processor.__class__)
