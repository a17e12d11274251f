"""Compile the repeated blocks of a transformer below all hooks, and undo it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dit_accel.core.levers import Compile
from dit_accel.errors import InvalidSettings
from dit_accel.hooks.added_hooks import has_hook, replace_forward


def check_compilable(transformer: nn.Module) -> None:
    """Check that a transformer names its repeated blocks, and that they can be compiled.

    Raises:
        InvalidSettings: If it does not, if they are compiled already, or if their weights are cast by hooks.
    """
    blocks = _repeated_blocks(transformer)
    if not blocks:
        raise InvalidSettings(
            f"{type(transformer).__name__} names no repeated blocks, so they cannot be compiled: leave compile out"
        )
    if any(block._compiled_call_impl is not None for block in blocks):
        raise InvalidSettings(
            f"the blocks of {type(transformer).__name__} are compiled already: leave compile out, or load the "
            "pipeline again"
        )
    if any(has_hook(module, "layerwise_casting") for block in blocks for module in block.modules()):
        raise InvalidSettings(
            f"weights of {type(transformer).__name__} are cast by hooks (enable_layerwise_casting), "
            "which torch.compile cannot follow: leave compile out"
        )


class CompiledBlocks:
    """The repeated blocks of a transformer, compiled.

    ``module.compile`` would also trace the hooks of caches on the blocks, which decide in Python. So the forward below
    them is compiled, and all blocks share one graph.

    Args:
        transformer: The transformer.
        settings: Arguments of ``torch.compile``.
    """

    def __init__(self, transformer: nn.Module, settings: Compile) -> None:
        self._forwards: list[tuple[nn.Module, Any, Any]] = []
        for block in _repeated_blocks(transformer):
            original = block.forward
            compiled = torch.compile(
                original,
                backend=settings.backend,
                mode=settings.mode,
                fullgraph=settings.fullgraph,
                dynamic=settings.dynamic,
            )
            block.forward = compiled
            self._forwards.append((block, original, compiled))

    @property
    def count(self) -> int:
        """Return the number of blocks."""
        return len(self._forwards)

    def undo(self) -> None:
        """Put the original forwards back."""
        for block, original, compiled in self._forwards:
            replace_forward(block, compiled, original)
        self._forwards = []


def _repeated_blocks(transformer: nn.Module) -> list[nn.Module]:
    names = getattr(transformer, "_repeated_blocks", None) or ()
    return [module for module in transformer.modules() if type(module).__name__ in names]
