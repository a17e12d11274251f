"""Dense attention, for reports and comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.ops import Ops
from dit_accel.methods.base import Method


@dataclass(frozen=True)
class Dense(Method):
    """Dense attention for every call, on the pipeline's own attention backend."""

    name: ClassVar[str] = "dense"
    source: ClassVar[str] = "-"

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan | None:
        return None
