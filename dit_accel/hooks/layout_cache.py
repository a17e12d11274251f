"""Token layouts of a run's forwards."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from dit_accel import hooks
from dit_accel.hooks.step_tracker import StepInfo
from dit_accel_pipelines import Family, TokenLayout


class LayoutCache:
    """Made once in a run for tensors of the same shapes: some are read from the device."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._made: dict[Hashable, TokenLayout | None] = {}

    def of(
        self, moment: StepInfo, arguments: Mapping[str, Any], config: Mapping[str, Any], degree: int
    ) -> TokenLayout | None:
        """The layout of a forward; ``degree`` devices share its text and its picture, each apart."""
        if moment.new_run:
            self._made.clear()
        tensors = list(_tensors(arguments.values()))
        key = (moment.branch, *(tensor.shape for tensor in tensors))
        if key not in self._made:
            layout = self._family.layout(arguments, config)
            if self._family.joint and layout is not None and degree > 1:
                layout = hooks.interleaved(layout, degree, tensors[0].device)
            self._made[key] = layout
        return self._made[key]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Also in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
