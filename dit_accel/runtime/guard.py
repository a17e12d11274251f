"""Check sparse output: is it finite, and is it near exact attention on sampled queries?"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING

import torch

from dit_accel.core.caller import caller_stacklevel
from dit_accel.core.ops import heads_first
from dit_accel_kernels import sampled_attention, spread_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dit_accel.core.attention_call import AttentionCall
    from dit_accel.core.schedule import Guard


@dataclass
class GuardMonitor:
    """The faults of one run.

    Errors of the sparse calls of a forward stay in one tensor on the device. They are read once, when the forward
    ends. A faulty layer stays faulty until the run ends.

    Attributes:
        guard: Settings of the guard.
        faults: Number of forwards by fault.
    """

    guard: Guard
    faults: Counter[str] = field(default_factory=Counter)
    _errors: Tensor | None = None  # [layers]; 0 if the layer was not checked
    _names: dict[int, str] = field(default_factory=dict)
    _faulty: dict[str, str] = field(default_factory=dict)

    def reason(self, layer: str) -> str | None:
        """Return why a layer has to run dense, or None."""
        fault = self._faulty.get(layer)
        return None if fault is None else f"guard: {fault}"

    def record(self, call: AttentionCall, out: Tensor, layer: str) -> None:
        """Store the error of a sparse call's output ``[B, S, H, D]`` without waiting for the device.

        Of several calls of a layer in one forward, such as one for each sample, the largest error counts.
        """
        context = call.context
        if self._errors is None or self._errors.numel() != context.num_layers:
            self._errors = torch.zeros(context.num_layers, dtype=torch.float32, device=out.device)
        self._names[context.layer] = layer
        error = sampled_error(call, out, self.guard.samples)
        self._errors[context.layer] = torch.maximum(self._errors[context.layer], error)

    def check(self) -> bool:
        """Count the faults of the forward that ends now, and warn about new ones.

        Returns:
            True if the forward must run again, dense, because its output was not finite.
        """
        if self._errors is None or not self._names:
            return False
        errors = self._errors.tolist()
        self._errors.zero_()
        not_finite = False
        for index, name in self._names.items():  # in the order of execution
            if not isfinite(errors[index]):
                self._add_fault(name, f"output of {name} was not finite")
                not_finite = True
                break  # the layers after it received broken input
            if errors[index] > self.guard.limit:
                self._add_fault(name, f"error of {name} above {self.guard.limit:g}")
        self._names.clear()
        return not_finite and self.guard.mode == "on"

    def _add_fault(self, layer: str, fault: str) -> None:
        if not self.faults[fault]:
            level = caller_stacklevel()
            warnings.warn(f"sparse attention: {fault}", RuntimeWarning, stacklevel=level)
        self.faults[fault] += 1
        if self.guard.mode == "on":
            self._faulty[layer] = fault


def sampled_error(call: AttentionCall, out: Tensor, samples: int) -> Tensor:
    """Return the relative L2 error of a call's output over sampled queries.

    Only every other head is sampled; the next step samples the others.

    Returns:
        A float32 scalar on the device. It is infinite if any value of the whole output is not finite.
    """
    rows = spread_rows(call.tokens, samples, out.device)
    half = slice(call.context.step % 2 if out.shape[2] > 1 else 0, None, 2)
    query, key, value = (t[:, half] for t in heads_first(call))
    exact = sampled_attention(query, key, value, rows, call.scale)  # [B, H / 2, R, D]
    sampled = out[:, rows, half].transpose(1, 2).float()
    error = (sampled - exact).norm() / exact.norm().clamp(min=torch.finfo(torch.float32).tiny)
    total = out.sum(dtype=torch.float32)
    return torch.where(total.isfinite() & error.isfinite(), error, torch.inf)


def check_caches(mode: str, transformer: nn.Module) -> None:
    """Raise RuntimeError if guard "on" meets a cache of diffusers or cache-dit, because it runs forwards again."""
    from dit_accel.hooks import foreign_states, has_cache_dit

    if mode == "on" and (has_cache_dit(transformer) or any(foreign_states(transformer))):
        owner = "cache-dit" if has_cache_dit(transformer) else "a diffusers cache"
        raise RuntimeError(
            f"guard 'on' cannot run a forward again under {owner}, which would count it twice: use guard 'warn', or "
            "disable the cache"
        )
