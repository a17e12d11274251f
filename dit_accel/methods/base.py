"""What a method is: a frozen dataclass of knobs that turns an attention call into a plan."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

from dit_accel.call import AttentionCall, Plan
from dit_accel.ops import Ops


@dataclass(frozen=True)
class Method(abc.ABC):
    """Base of all methods. Subclasses are frozen dataclasses; their fields are the knobs.

    Attributes:
        name: how the command line and the table of methods call it.
        source: where it comes from.
    """

    name: ClassVar[str]
    source: ClassVar[str]

    def new_state(self) -> Any:
        """Fresh memory for one (transformer, layer, branch, shape); it lives until the run ends."""
        return None

    @abc.abstractmethod
    def plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan | None:
        """Decide what to compute; None: nothing better than a dense call."""
