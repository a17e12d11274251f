"""Watches sparse output: not finite, or far from exact attention on sampled queries."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING

import torch

from dit_accel.core.attention_call import AttentionCall
from dit_accel.core.ops import heads_first
from dit_accel.core.schedule import Guard
from dit_accel_kernels import sampled_attention, spread_rows

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class GuardMonitor:
    """Errors of the sparse calls of a forward stay in one tensor on the device, and are read once, at its
    end. Layers that were found faulty stay so until the run ends.
    """

    guard: Guard
    faults: Counter[str] = field(default_factory=Counter)
    _errors: Tensor | None = None  # [layers]; 0: not looked at
    _names: dict[int, str] = field(default_factory=dict)
    _faulty: dict[str, str] = field(default_factory=dict)

    def begin_run(self) -> None:
        self._errors = None
        self._names.clear()
        self._faulty.clear()

    def reason(self, layer: str) -> str | None:
        """Why a layer has to run dense, if it has."""
        return self._faulty.get(layer)

    def look(self, call: AttentionCall, out: Tensor, layer: str) -> None:
        """Note the error of a sparse call's output ``[B, S, H, D]``; nothing waits for the device."""
        if self._errors is None or self._errors.numel() != call.num_layers:
            self._errors = torch.zeros(call.num_layers, device=out.device)
        self._names[call.layer] = layer
        self._errors[call.layer] = sampled_error(call, out, self.guard.samples)

    def read(self) -> bool:
        """Whether output of the forward that ends now was not finite, and it must run again; counts and
        tells what was found.
        """
        if self._errors is None or not self._names:
            return False
        errors = self._errors.tolist()
        self._errors.zero_()
        broken = False
        for index, name in self._names.items():  # in the order of execution
            if not isfinite(errors[index]):
                self._found(name, f"output of {name} was not finite")
                broken = True
                break  # what comes after got broken input
            if errors[index] > self.guard.limit:
                self._found(name, f"error of {name} above {self.guard.limit:g}")
        self._names.clear()
        return broken and self.guard.mode == "on"

    def _found(self, layer: str, fault: str) -> None:
        if not self.faults[fault]:
            warnings.warn(f"sparse attention: {fault}", RuntimeWarning, stacklevel=2)
        self.faults[fault] += 1
        if self.guard.mode == "on":
            self._faulty[layer] = fault


def sampled_error(call: AttentionCall, out: Tensor, samples: int) -> Tensor:
    """Relative L2 error of a call's output over sampled queries of half of the heads, the other half at the
    next step, float32 scalar on the device; infinite if any of the whole output is not finite.
    """
    rows = spread_rows(call.tokens, samples, out.device)
    half = slice(call.step % 2 if out.shape[2] > 1 else 0, None, 2)
    query, key, value = (t[:, half] for t in heads_first(call))
    exact = sampled_attention(query, key, value, rows, call.scale)  # [B, H / 2, R, D]
    found = out[:, rows, half].transpose(1, 2).float()
    error = (found - exact).norm() / exact.norm().clamp(min=torch.finfo(torch.float32).tiny)
    total = out.sum(dtype=torch.float32)
    return torch.where(total.isfinite() & error.isfinite(), error, torch.inf)
