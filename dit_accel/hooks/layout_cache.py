"""Cache the token layouts of a run."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from torch import Tensor

from dit_accel.hooks.context_parallel import interleaved, splits_text
from dit_accel.hooks.root_hook import ForwardCall, config_of
from dit_accel_pipelines import Family, TokenLayout


class LayoutCache:
    """Token layouts of one run. Tensors of the same shapes share a layout, because some are read from the device."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._layouts: dict[Hashable, TokenLayout | None] = {}

    def get(self, branch: str, call: ForwardCall, degree: int) -> TokenLayout | None:
        """Return the layout of a forward.

        Args:
            branch: Name of the forward within its step.
            call: The forward.
            degree: Number of devices that share a sequence.
        """
        arguments, config = call.arguments, config_of(call.module)
        if degree > 1 and not splits_text(call.module):
            degree = 1
        tensors = list(_tensors(arguments.values()))
        key = (branch, *(tensor.shape for tensor in tensors))
        if key not in self._layouts:
            layout = self._family.layout(arguments, config)
            if self._family.joint and layout is not None and degree > 1:
                layout = interleaved(layout, degree, tensors[0].device)
            self._layouts[key] = layout
        return self._layouts[key]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among some values, and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
