"""Sparse attention inside ComfyUI's own models: a profile applied to one run at a time."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dit_accel.comfyui.native_attention import CLOSE, UNKNOWN, ModelCall
from dit_accel.comfyui.override import Attention, OverrideCall, override
from dit_accel.core.attention_call import AttentionCall, CallContext
from dit_accel.runtime.dispatch import MethodRunner
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.run import Run
from dit_accel_pipelines import TokenLayout


@dataclass
class SparseOverride:
    """A profile applied to the self-attention of a model, for one run at a time.

    Attributes:
        profile: How attention runs.
        window: Sigmas between which attention is sparse: ``window[1] < sigma <= window[0]``.
        seen: Number of calls of the model at one sigma.
        layers: Number of self-attentions of the model, known after its first call.
    """

    profile: Profile
    window: tuple[float, float] = (math.inf, -math.inf)
    seen: Counter[Any] = field(default_factory=Counter)
    layers: int = UNKNOWN

    def __post_init__(self) -> None:
        self.runner, self.run = MethodRunner(self.profile), Run(self.profile)

    def reset(self) -> None:
        """Free the memory of a run that is over. Its counts stay for the report."""
        self.run.free()
        self.seen.clear()
        self.layers = UNKNOWN

    def begin(self) -> None:
        """Begin a run."""
        self.reset()
        self.run = Run(self.profile)

    def attention(self, call: ModelCall) -> Attention:
        """Return the override for one model call."""

        def answer(asked: OverrideCall) -> Tensor:
            reason = call.entered(asked)
            if reason is None and asked.mask is not None:
                reason = "attention mask"
            if reason is None:
                out = self.sparse(asked, call)
                if isinstance(out, Tensor):
                    return asked.joined(out)
                reason = out
            self.run.stats.count_fallback(reason)
            return asked.onward(call.previous)

        return override(answer)

    def sparse(self, asked: OverrideCall, call: ModelCall) -> Tensor | str:
        """Return sparse attention ``[B, S, H, D]``, or the reason why the call stays dense."""
        step = call.where
        first, last = (sigma * (1 + CLOSE) for sigma in self.window)
        if not last < step.sigma <= first:
            return "outside its part of the steps"
        query, key, value = asked.tokens()
        tokens = query.shape[1]
        layout = step.layout(asked.options, tokens)
        context = CallContext(
            step=step.step,
            num_steps=step.num_steps,
            layer=call.layer,
            num_layers=self.layers,
            component="model",
            branch=step.branch,
        )
        route = self.runner.route(
            context,
            self.run,
            tokens=tokens,
            has_grid=layout is not None,
            min_tokens=self.profile.schedule.min_tokens or 0,
        )
        if route.reason is not None or route.method is None:
            return route.reason or "dense by schedule"
        attention = AttentionCall(
            query=query,
            key=key,
            value=value,
            scale=asked.scale,
            context=context,
            layout=layout or TokenLayout(1, 1, tokens),
        )
        owner = (step.stream, call.layer, tuple(query.shape))
        attended = self.runner.run_method(attention, self.run, route.method, owner)
        if attended is None:
            return f"{route.method.name} found nothing better than dense"
        self.run.stats.count_sparse(f"layer {call.layer}", attended.density)
        return attended.out

    def report(self) -> str:
        """Return one line for the log."""
        stats, name = self.run.stats, self.profile.method.name
        reasons = ", ".join(f"{reason} x{n}" for reason, n in stats.fallbacks.items())
        density, calls = stats.density()["sparse_calls"], stats.calls["sparse"]
        sparse = f"{calls} sparse calls of density {density:.2f}" if calls else "no call was sparse"
        remarks = self.runner.precisions.remarks()
        return "; ".join([f"dit_accel: {name}: {sparse}", f"dense: {reasons or 'none'}", *remarks])
